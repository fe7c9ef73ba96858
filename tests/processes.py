"""Several processes that train or count together (gloo, on the CPU), for tests."""

import os, socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _member(rank, world, port, queue, function, args):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=world)
    queue.put((rank, function(rank, *args)))
    dist.barrier()
    dist.destroy_process_group()


def in_processes(function, *args, world=2):
    """What `function(rank, *args)` returns in each process, by rank. It is a function of a module and returns
    numbers, lists and strings: a tensor's memory ends with its process."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    ctx = mp.get_context('spawn')
    queue = ctx.Queue()
    members = [ctx.Process(target=_member, args=(r, world, port, queue, function, args)) for r in range(world)]
    for m in members:
        m.start()
    results = dict(queue.get(timeout=120) for _ in members)
    for m in members:
        m.join(60)
        assert m.exitcode == 0
    return [results[rank] for rank in range(world)]
