"""The same training, started as people start several processes: torchrun and accelerate launch of the command, notebook_launcher of the notebook's function; and compiled, in one process and in two."""

import os, socket, subprocess, sys
from pathlib import Path
import pytest
import torch
from idrnet_nb.training.checkpoint import load_checkpoint
from idrnet_nb.common.device import seed_everything
from idrnet_nb.common.distributed import rank_and_world_size
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.logger import read_log
from idrnet_nb.training.recipes import RECIPES, mini
from idrnet_nb.training.trainer import TrainState, train
from processes import in_processes

BIN = Path(sys.executable).parent
ENV = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'HF_HUB_OFFLINE': '1',
    'CUDA_VISIBLE_DEVICES': '',
    'ACCELERATE_USE_CPU': 'true',
}


def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def ran(*words, **how):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENV, timeout=240, **how)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_fake_dataset(
        'lip', tmp_path_factory.mktemp('data') / 'LIP', LABEL_SPACES['lip'], train=8, unseen=5, size=(48, 48)
    )


def words(root, out):
    return [
        'idrnet',
        'train',
        '--data',
        'lip',
        '--root',
        root,
        '--recipe',
        'laptop_fcn_lip',
        '--mini',
        '--set',
        'epochs=3',
        'log_every=1',
        '--judge',
        'val',
        '--device',
        'cpu',
        '--quiet',
        '--out',
        out,
    ]


def test_torchrun(root, tmp_path):
    "Two processes, one training: one log, one set of checkpoints, one answer; two processes judge five pictures, each once; and one process resumes."
    start = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        2,
        '--no-python',
        BIN / 'idrnet',
    ]
    told = ran(*start, *words(root, tmp_path / 'run')[1:])
    assert (
        told.count('\nmIoU ') == 1
        and told.count('the page: ') == 1
        and '5 unseen images' in told
        and told.count('saved in') == 1
    )
    assert [l['step'] for l in read_log(tmp_path / 'run') if 'loss' in l] == list(range(6))
    found = load_checkpoint(tmp_path / 'run' / 'checkpoints')
    assert found['about']['where']['processes'] == 2 and len(found['state']['rng']) == 2 and found['step'] == 6
    one = ran(
        BIN / 'idrnet',
        'evaluate',
        '--model',
        tmp_path / 'run',
        '--data',
        'lip',
        '--root',
        root,
        '--device',
        'cpu',
        '--quiet',
    )
    again = ran(
        BIN / 'idrnet', *words(root, tmp_path / 'run')[1:], '--resume'
    )  # nothing is left to be done, and it says the same
    scores = {next(line.split()[1] for line in t.splitlines() if line.startswith('mIoU ')) for t in (told, one, again)}
    assert len(scores) == 1


def test_accelerate_launch(root, tmp_path):
    "With --cpu it starts one process only (several need MPI); told of several GPUs it starts several, and they meet on the device that the command names."
    start = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--multi_gpu',
        '--main_process_port',
        port(),
        '--num_processes',
        2,
        '--num_machines',
        1,
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--no_python',
        BIN / 'idrnet',
    ]
    assert ran(*start, *words(root, tmp_path / 'run')[1:]).count('\nmIoU ') == 1
    assert load_checkpoint(tmp_path / 'run' / 'checkpoints')['about']['where']['processes'] == 2


def taught(root, out):  # what a notebook's cell would hold
    recipe = mini(RECIPES['laptop_fcn_lip'], epochs=2)
    rows = DATASETS['lip'].load(root, 'train')
    seed_everything(0)
    model = recipe.build()
    train(model, recipe.pairs(rows), recipe.config(len(rows)), 'cpu', False, out=out)
    if int(os.environ.get('RANK', 0)) == 0:
        torch.save(model.state_dict(), Path(out) / 'weights.pt')


def test_notebook_launcher(root, tmp_path):
    "A cell that starts the function twice; both processes were one training."
    script = (
        'import os, sys; sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]; from test_launch import taught; from accelerate import notebook_launcher; '
        'notebook_launcher(taught, sys.argv[2:4], num_processes=2, use_port=sys.argv[4])'
    )
    ran(sys.executable, '-c', script, Path(__file__).parent, root, tmp_path / 'two', port())
    found = load_checkpoint(tmp_path / 'two' / 'checkpoints')
    assert found['about']['where']['processes'] == 2 and found['step'] == 4
    weights = torch.load(tmp_path / 'two' / 'weights.pt')
    for name, x in found['state']['model'].items():
        assert torch.equal(x, weights[name]), name


def test_processes_share_an_evaluation(root, tmp_path):
    "The counts of two processes, five pictures between them, are those of one; each picture's too, in order."
    (tmp_path / 'judge.py').write_text(f'''
import sys, torch
from idrnet_nb.common.distributed import init_distributed, rank_and_world_size
from idrnet_nb.common.device import seed_everything
from idrnet_nb.common.distributed import rank_and_world_size
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.training.inference import evaluate
from idrnet_nb.training.recipes import RECIPES, mini
init_distributed('cpu'); seed_everything(0)
net, data = mini(RECIPES['laptop_fcn_lip']).build().eval(), SegmentationDataset(DATASETS['lip'].load({str(root)!r}, 'val'), DATASETS['lip'].space)
both, alone = (evaluate(net, data, batch_size=1, boundary=.02, together=t) for t in (True,False))
assert torch.equal(both.total, alone.total) and torch.equal(both.per_image, alone.per_image) and len(both)==5, rank_and_world_size()
assert str(both.scores())==str(alone.scores())
torch.distributed.destroy_process_group()
''')
    ran(sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2, tmp_path / 'judge.py')


def two_steps(backend):
    "Weights and buffers after two steps of a batch in two parts, and how many graphs torch compiled."
    seed_everything(0)
    model = build_segmentor('fcn', 'tiny', 4, width=8, attention_width=6, aux_width=8, dropout=0.0)
    config = TrainConfig(2, batch_size=8, accumulate=2, lr=0.1, optimiser='sgd', warmup=0, compile=backend)
    state = TrainState(model, config, torch.device('cpu'))
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 40), dtype=torch.uint8, generator=draws)
    label = torch.randint(0, 4, (8, 32, 40), generator=draws)
    rank, world_size = rank_and_world_size()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        state.train_step(images.chunk(world_size)[rank], label.chunk(world_size)[rank])
        state.advance()
    graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
    return {name: x.tolist() for name, x in model.state_dict().items()}, graphs


def compiled_and_not(rank):
    return two_steps(None), two_steps('aot_eager')


def same_training(plain, compiled):
    "The compiled training is one graph, exchange and deletion pass included, and learns the same."
    (want, none), (got, one) = plain, compiled
    assert (none, one) == (0, 1)
    assert want['head.idr.deletion_count'] != [1e-6] * 4 and want['head.idr.relation_mean'] != torch.eye(4).tolist()
    for name, x in want.items():
        torch.testing.assert_close(torch.tensor(got[name]), torch.tensor(x), msg=lambda m, n=name: f'{n}: {m}')


def test_compiled_accumulation():
    same_training(*compiled_and_not(0))


def test_compiled_in_two_processes():
    "Each has the other's deletions, too, and both learn the same, compiled or not."
    first, second = in_processes(compiled_and_not)
    same_training(*first)
    for (mine, _), (other, _) in zip(first, second):
        for name in mine:
            if 'running' not in name:  # statistics of a norm on a CPU are each process's own
                assert mine[name] == other[name], f'{name} differs between the processes'
    assert sum(first[0][0]['head.idr.deletion_count']) > 2 * 8 - 1
