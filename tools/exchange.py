"""What do several processes exchange in a training step, and how long does it take?

    python tools/exchange.py                          all rows: five minutes on two cores
    python tools/exchange.py --processes 2 --classes 19 --size 64

Processes on this machine (gloo) train FCN with IDR on ResNet-50 (stride 8, 512 channels), two
made-up images each, under DistributedDataParallel (DDP). Two forms of the diagnostics' exchange are
compared, the same numbers in both: six calls, as it was before (an all-gather for each tensor), and
two calls, as it is (`all_gather_packed`, `all_reduce_packed`).

Calls and bytes are not computed: the functions of torch.distributed are replaced by ones that count
and then do the same; DDP's own by its hook for gradients and by its broadcast. Then both forms
exchange the tensors of that step, in turns, --repeats times a round, and the slowest process of a
round counts. At last the whole step is timed, forward and backward. It is small on purpose: the
exchange does not depend on the size of the images, the step does, so in a real training the share
of the exchange is smaller. Four processes on two cores wait for each other, too: a row says
how many cores there were.

Rows go to nbs/results/exchange.csv, a row that is measured again replaces its older self;
nbs/0_common/05_distributed.ipynb shows them. Columns, all of one process and one step:

    form                    'six calls' or 'two calls'
    processes, classes, channels, batch, size   batch: images of a process; size: their height and width
    calls                   of the diagnostics
    handed                  bytes handed over in these calls
    sent                    bytes sent, in a ring: to gather, the n bytes of a process pass all others,
                            n (P-1); to add up, 2 n (P-1) / P
    ms, ms_low, ms_high     the exchange: median, fastest and slowest round
    step_ms                 forward and backward, median
    share                   percent: 100 ms / step_ms
    gradients, buffers      bytes handed over by DDP itself: gradients; buffers, from process 0 to all
    rounds, repeats, cores  how it was measured
    date … device, timm     as in the other results"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
from record import here, put
from idrnet_nb.common.device import seed_everything
from idrnet_nb.common.distributed import all_gather_object, all_gather_packed, all_reduce_packed
from idrnet_nb.common.distributed import rank_and_world_size
from idrnet_nb.method import idr
from idrnet_nb.models.segmentor import build_segmentor

OUT = Path(__file__).resolve().parents[1] / 'nbs' / 'results' / 'exchange.csv'
PROCESSES, CLASSES, CHANNELS, BATCH, SIZE = (2, 4), (19, 150), 512, 2, 128
STEPS = 3  # whole steps that are timed
COLUMNS = (
    'form',
    'processes',
    'classes',
    'channels',
    'batch',
    'size',
    'calls',
    'handed',
    'sent',
    'ms',
    'ms_low',
    'ms_high',
    'step_ms',
    'share',
    'gradients',
    'buffers',
    'rounds',
    'repeats',
    'cores',
    *here(),
)
KEY = ('form', 'processes', 'classes', 'channels', 'batch', 'size', 'device')

# --- the two forms


def gather_each(*tensors):
    "As `all_gather_packed`, with a call for each tensor."
    gathered = []
    for x in tensors:
        parts = [torch.empty_like(x) for _ in range(rank_and_world_size()[1])]
        dist.all_gather(parts, x.contiguous())
        gathered.append(torch.cat(parts))
    return tuple(gathered)


def gather_sums(*tensors):
    "As `all_reduce_packed`: each process gathers what all have, and adds it up itself."
    return tuple(gather_each(x[None])[0].sum(0) for x in tensors)


FORMS = {'six calls': (gather_each, gather_sums), 'two calls': (all_gather_packed, all_reduce_packed)}

# --- counting


ARGUMENT = {'all_gather': 1, 'all_reduce': 0, '_broadcast_coalesced': 1}  # the one that is handed over


def counting(name, calls):
    """The function `name` of torch.distributed, which also adds (name, bytes handed over) to `calls`:
    'buffers' and 'gradients' where DDP calls it (for gradients DDP alone does not wait)."""
    function = getattr(dist, name)

    def counted(*args, **how):
        handed = args[ARGUMENT[name]]
        nbytes = sum(x.nbytes for x in handed) if isinstance(handed, list) else handed.nbytes
        who = 'buffers' if name == '_broadcast_coalesced' else 'gradients' if how.get('async_op') else name
        calls.append((who, nbytes))
        return function(*args, **how)

    return counted


def counted(form, step):
    """(name, bytes) of each call of torch.distributed while `step()` runs, and the tensors that the
    diagnostics gather and add up, a tuple of both."""
    calls, tensors = [], []
    with ExitStack() as stack:
        for name in ARGUMENT:
            stack.enter_context(patch.object(dist, name, counting(name, calls)))
        for name, exchange in zip(('all_gather_packed', 'all_reduce_packed'), FORMS[form]):

            def remembered(*handed, exchange=exchange):
                tensors.append(handed)
                return exchange(*handed)

            stack.enter_context(patch.object(idr, name, remembered))
        step()
    return calls, tuple(tensors)


def sent(calls, world_size):
    "Bytes that a process sends in these calls, if the processes stand in a ring."
    others = world_size - 1
    rate = {'all_gather': others, 'all_reduce': 2 * others / world_size}
    return round(sum(n * rate[name] for name, n in calls))


# --- timing


def exchange_ms(form, tensors, repeats):
    "Milliseconds of an exchange of `tensors`, mean of so many; that of the slowest process."
    gather, add_up = FORMS[form]
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        gather(*tensors[0])
        add_up(*tensors[1])
    return max(all_gather_object(1000 * (time.perf_counter() - start) / repeats))


def step_ms(step):
    "Milliseconds of a step, median; those of the slowest process."
    times = []
    for _ in range(STEPS):
        dist.barrier()
        start = time.perf_counter()
        step()
        times.append(max(all_gather_object(1000 * (time.perf_counter() - start))))
    return statistics.median(times)


# --- a process


class Step:
    "Forward and backward of a model under DDP, on images of its own."

    def __init__(self, classes, size):
        seed_everything(0)
        model = build_segmentor('fcn', 'resnet50c', classes, output_stride=8, width=CHANNELS).train()
        self.network = DistributedDataParallel(model)
        self.network.register_comm_hook(None, allreduce_hook)  # what DDP does, seen by `counting`
        torch.manual_seed(dist.get_rank())
        self.images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
        self.label = torch.randint(0, classes, (BATCH, size, size))

    def __call__(self):
        self.network(self.images, self.label).loss.backward()


def measure(classes, size, rounds, repeats):
    "A row for each form; the same in all processes, which come here together."
    step, world_size = Step(classes, size), dist.get_world_size()
    step()  # DDP arranges the gradients anew after the first
    rows, times = [], {form: [] for form in FORMS}
    for form in FORMS:
        calls, tensors = counted(form, step)
        own = [call for call in calls if call[0] in ('all_gather', 'all_reduce')]
        row = dict(form=form, processes=world_size, classes=classes, channels=CHANNELS, batch=BATCH, size=size)
        row |= dict(calls=len(own), handed=sum(n for _, n in own), sent=sent(own, world_size))
        row |= {who: sum(n for name, n in calls if name == who) for who in ('gradients', 'buffers')}
        rows.append(row)
    for _ in range(rounds):
        for form in FORMS:
            times[form].append(exchange_ms(form, tensors, repeats))
    whole = step_ms(step)
    for row in rows:
        found = times[row['form']]
        middle = statistics.median(found)
        row |= dict(ms=round(middle, 3), ms_low=round(min(found), 3), ms_high=round(max(found), 3))
        row |= dict(step_ms=round(whole, 1), share=round(100 * middle / whole, 2))
        row |= dict(rounds=rounds, repeats=repeats, cores=os.cpu_count(), **here())
    return rows


def member(rank, world_size, store, options):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world_size)
    for classes in options.classes:
        rows = measure(classes, options.size, options.rounds, options.repeats)
        if rank == 0:
            put(options.out, rows, KEY, COLUMNS)
            for row in rows:
                print(*(f'{name} {row[name]} ' for name in COLUMNS[:16]), flush=True)
    dist.destroy_process_group()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--processes', type=int, nargs='+', default=PROCESSES)
    p.add_argument('--classes', type=int, nargs='+', default=CLASSES)
    p.add_argument('--size', type=int, default=SIZE)
    p.add_argument('--rounds', type=int, default=21)
    p.add_argument('--repeats', type=int, default=20)
    p.add_argument('--out', type=Path, default=OUT)
    options = p.parse_args()
    for world_size in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(member, (world_size, Path(folder) / 'store', options), world_size)


if __name__ == '__main__':
    main()
