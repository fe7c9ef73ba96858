"""idrnet relations: what it writes, what goes on, what it refuses."""

import csv, json
import pytest
from PIL import Image
from commands import run_command
from idrnet_nb.common.device import seed_everything
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.experiments.relations import Relations
from idrnet_nb.method.toy_world import TOY_WORLD
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import save_model

SPACE = LABEL_SPACES['camvid']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A made-up CamVid, a model of it with IDR, and one of the toy world without."
    folder = tmp_path_factory.mktemp('files')
    write_fake_dataset('camvid', folder / 'camvid', SPACE, train=2, unseen=12, size=(48, 64))
    seed_everything(0)
    small = dict(width=8, attention_width=8, aux_width=8)
    save_model(build_segmentor('fcn', 'tiny', SPACE.num_classes, **small), folder / 'model', SPACE, (48, 64))
    save_model(build_segmentor('fcn', 'tiny', 12, idr=False, **small), folder / 'world', TOY_WORLD, (64, 64))
    return folder


def run(capsys, *words):
    return run_command(capsys, 'relations', *words)


def camvid(files, *words):
    return ['--model', files / 'model', '--root', files / 'camvid', '--quiet', '--device', 'cpu', *words]


@pytest.mark.parametrize('how', ['features', 'context', 'image'])
def test_writes_what_it_found(capsys, files, tmp_path, how):
    out = tmp_path / 'out'
    code, said, _ = run(capsys, *camvid(files, '--how', how, '--out', out))
    assert code == 0 and 'pairs that were tested are settled, 11 classes' in said.splitlines()[0]
    found = Relations.load(out / 'relations.json')
    assert found.names == SPACE.classes and found.how == how and found.learnt.shape == (11, 11)
    assert '12 images' in found.note and 'camvid' in found.note and 'commit' in found.note
    assert found.images.max() >= 5
    with open(out / 'relations.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == int((found.images > 0).sum())
    frame = found.to_frame()
    assert [r['deleted'] for r in rows] == frame.deleted.tolist()
    assert float(rows[0]['mean']) == pytest.approx(frame['mean'][0], rel=1e-4)
    assert said.splitlines()[1:-1] == found.sentences(10)
    for name in ('matrix', 'graph'):
        assert min(Image.open(out / f'{name}.png').size) > 200


def test_own_images_and_going_on(capsys, files, tmp_path):
    own = ['--images', files / 'camvid' / 'test', '--labels', files / 'camvid' / 'testannot']
    words = ['--model', files / 'model', *own, '--quiet', '--out', tmp_path / 'out', '--size', '48x64']
    assert run(capsys, *words, '--limit', 3)[0] == 0
    log = tmp_path / 'out' / 'changes.jsonl'
    three = log.read_text().splitlines()
    assert run(capsys, *words, '--deletions', 2)[0] == 0
    more = log.read_text().splitlines()
    assert more[:4] == three and len(more) == 13
    published = run(capsys, *camvid(files, '--out', tmp_path / 'other'))
    assert published[0] == 0
    a, b = (json.loads((tmp_path / d / 'relations.json').read_text()) for d in ('out', 'other'))
    assert a['mean'] == pytest.approx(b['mean'], abs=1e-4)


def test_refusals(capsys, files, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    out = ['--out', tmp_path / 'out']
    world = ['--model', files / 'world', '--quiet', *out]
    for words, text in {
        ('--data', 'world', '--root', files): '--root has no effect',
        ('--data', 'world', '--how', 'context'): 'has no IDR',
        ('--data', 'camvid', '--root', files / 'camvid'): 'trained for label set',
        ('--images', files): 'give --images DIR --labels DIR',
        ('--data', 'world', '--allow', 'ignored-id'): '--allow has no effect',
        ('--data', 'world', '--image-suffix', 'x'): '--image-suffix has no effect',
        ('--data', 'world', '--how', 'picture'): 'invalid choice',
        ('--data', 'world', '--limit', '0'): 'limit',
    }.items():
        code, _, err = run(capsys, *world, *words)
        assert code == 2 and text in err, (words, err)
    assert not (tmp_path / 'out' / 'relations.json').exists()
    for folder, text in {tmp_path / 'mine': 'holds other files', files / 'model': 'this folder is read'}.items():
        code, _, err = run(capsys, *camvid(files, '--out', folder))
        assert code == 2 and text in err
    assert run(capsys, *camvid(files, *out, '--limit', 2))[0] == 0
    code, _, err = run(capsys, *camvid(files, *out, '--how', 'image'))
    assert code == 2 and "how was 'features', is 'image'" in err
