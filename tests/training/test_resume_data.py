"""A training is resumed on the data that it began with, or refused in words that name what differs; what could not end well is refused before the first step."""

import os, random, re, shutil, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest, torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from idrnet_nb.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from idrnet_nb.common.checks import IGNORE
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import seed_everything
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.pairing import folder_pairs
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import Evaluator, EvalProtocol, save_model
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.trainer import train
from idrnet_nb.method.toy_world import ToyWorld

K, NAMES = 3, ('sky', 'road', 'car')
CONFIG = TrainConfig(steps=6, batch_size=2, lr=1e-2, warmup=2, seed=3, log_every=2)
AUGMENT = Augment(crop=(16, 16), seed=1)


def space(names=NAMES, ids=(0, 1, 2), ignore=IGNORE, name='made up'):
    raw = {**{i: t for t, i in enumerate(ids)}, IGNORE: ignore}
    return LabelSpace(name, names, tuple(map(tuple, palette(len(names)).tolist())), raw, ignore)


def model(k=K, seed=0):
    seed_everything(seed)
    return build_segmentor('fcn', 'tiny', k, width=8, attention_width=6, aux_width=8)


def write(folder, n=8, seed=0, side=20):
    "A folder of images and masks; every mask holds all three classes and some ignored pixels."
    r = np.random.default_rng(seed)
    for kind in ('images', 'masks'):
        (folder / kind).mkdir(parents=True)
    for i in range(n):
        label = r.choice([0, 1, 2, IGNORE], (side, side), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        Image.fromarray(r.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(
            folder / 'images' / f'street_{i}.png'
        )
        Image.fromarray(label).save(folder / 'masks' / f'street_{i}.png')
    return folder


def rows(folder):
    return folder_pairs(folder / 'images', folder / 'masks')


def pairs(folder, spaces=None, augment=AUGMENT, **more):
    return SegmentationDataset(rows(folder), spaces or space(), augment=augment, **more)


def held(folder):  # the same rows, in memory, as from the Hub
    read = lambda p: dict(path=Path(p).name, bytes=Path(p).read_bytes())
    return [dict(image=read(r['image']['path']), label=read(r['label']['path'])) for r in rows(folder)]


class Killed(BaseException):
    pass


def begin(out, data, stop=4, config=CONFIG, **how):
    "A training that is killed after some steps; its last checkpoint is older."

    def on_step(step):
        if step == stop - 1:
            raise Killed

    with pytest.raises(Killed):
        train(model(), data, config, 'cpu', False, on_step, out, save_every=1 if stop < 3 else 3, **how)


def go_on(out, data, config=CONFIG, net=None, **how):
    return train(net or model(seed=9), data, config, 'cpu', False, out=out, resume=True, **how)


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def refuses(out, data, *words, **how):
    "The error names what differs, and nothing that is there changes, the model included."
    before, net = contents(out), model(seed=9)
    weights = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError) as e:
        go_on(out, data, net=net, **how)
    for word in (*words, 'of another training', 'step-'):
        assert word in str(e.value), str(e.value)
    assert contents(out) == before and all(map(torch.equal, weights, net.parameters()))


@pytest.fixture
def started(tmp_path):
    "A folder of data, and a training on it that was killed; beside the checkpoints a saved model, as `idrnet train` leaves one."
    write(tmp_path / 'data')
    begin(tmp_path / 'out', pairs(tmp_path / 'data'))
    save_model(model(), tmp_path / 'out', space())
    return tmp_path


# --- what differs is named

OTHER = {
    'classes': (dict(names=('road', 'sky', 'car')), 'classes 0, 1 were sky, road, are road, sky'),
    'a name': (dict(names=('sky', 'street', 'car')), 'classes 1 were road, are street'),
    'ids': (dict(ids=(1, 0, 2)), 'id 0 in the masks was 0, is 1; id 1 in the masks was 1, is 0'),
    'more ids': (dict(ids=(0, 1, 3)), 'id 2 in the masks was 2, is unknown; id 3 in the masks was unknown, is 2'),
    'ignore': (dict(ignore=254), 'ignore was 255, is 254'),
}


@pytest.mark.parametrize('what', OTHER)
def test_another_label_space(started, what):
    change, said = OTHER[what]
    refuses(started / 'out', pairs(started / 'data', space(**change)), said)


@pytest.mark.parametrize(
    'change,said',
    [
        (dict(scale=(0.9, 1.1)), 'augment.scale was [0.5, 2.0], is [0.9, 1.1]'),
        (dict(flip_pairs=((1, 2),)), 'augment.flip_pairs was [], is [[1, 2]]'),
        (dict(crop=(12, 12)), 'augment.crop was [16, 16], is [12, 12]'),
        (dict(seed=2), 'augment.seed was 1, is 2'),
        (dict(photometric=False), 'augment.photometric was True, is False'),
        (dict(bounds=(20, 30)), 'augment.bounds was None, is [20, 30]'),
    ],
    ids=str,
)
def test_another_augmentation(started, change, said):
    refuses(started / 'out', pairs(started / 'data', augment=replace(AUGMENT, **change)), said)


def test_no_augmentation_or_another_size(started):
    refuses(started / 'out', pairs(started / 'data', augment=None), 'augment was {', 'is None')
    refuses(started / 'out', pairs(started / 'data', size=(20, 24)), 'size was None, is [20, 24]')


def test_other_files(started):
    data = started / 'data'
    whole = rows(data)
    refuses(
        started / 'out',
        SegmentationDataset(whole.select([1, 0, *range(2, 8)]), space(), augment=AUGMENT),
        'image 0 was street_0.png, is street_1.png; image 1 was street_1.png',
    )
    refuses(
        started / 'out', SegmentationDataset(whole.select(range(6)), space(), augment=AUGMENT), 'pictures was 8, is 6'
    )
    refuses(started / 'out', pairs(write(started / 'other', seed=7)), 'had', 'bytes, has', 'more pairs of files differ')


@pytest.mark.parametrize('what', ['image', 'mask', 'same size', 'renamed', 'other mask'])
def test_one_file_changed(started, what):
    data, said = (
        started / 'data',
        dict(image='image 3 (street_3.png) had', mask='the mask of image 3 (street_3.png) had'),
    )
    if what == 'image':
        Image.new('RGB', (20, 20)).save(data / 'images' / 'street_3.png')
    if what == 'mask':
        Image.new('L', (20, 20)).save(data / 'masks' / 'street_3.png')
    if what == 'same size':
        path = data / 'masks' / 'street_3.png'
        path.write_bytes(path.read_bytes()[:-1] + b'?')
        said[what] = 'image 3 (street_3.png) or its mask holds something else'
    if what == 'renamed':
        for kind in ('images', 'masks'):
            (data / kind / 'street_3.png').rename(data / kind / 'street_3b.png')
        said[what] = 'image 3 was street_3.png, is street_3b.png'
    if what == 'other mask':
        (data / 'masks' / 'street_3.png').rename(data / 'masks' / 'street_3.bmp')
        said[what] = 'the mask of image 3 (street_3.png) was street_3.png, is street_3.bmp'
    refuses(started / 'out', pairs(data), said[what])


def test_it_is_named_among_many(tmp_path):
    "More files than are looked into: the one of another size is still named, by its number."
    from idrnet_nb.data.fingerprint import compress_json, data_differences, file_table

    write(tmp_path, 1)
    many = [
        dict(image=tmp_path / 'images' / 'street_0.png', label=tmp_path / 'masks' / 'street_0.png') for _ in range(999)
    ]
    was = dict(files=compress_json(file_table(many)))
    Image.new('L', (20, 20)).save(tmp_path / 'masks' / 'empty.png')
    many[701] = dict(many[701], label=tmp_path / 'masks' / 'empty.png')
    assert data_differences(was, dict(files=compress_json(file_table(many)))) == [
        'the mask of image 701 (street_0.png) was street_0.png, is empty.png'
    ]


# --- what is the same


def same_end(a, b):
    return all(torch.equal(x, b.state_dict()[n]) for n, x in a.state_dict().items())


def test_the_same_data_elsewhere(started):
    "A data folder that was moved, a name in another Unicode form, workers, a space of another name: the same training, bit for bit."
    whole = model()
    train(whole, pairs(started / 'data'), CONFIG, 'cpu', False)
    for i, data in enumerate(
        (
            pairs(started / 'data'),
            pairs(shutil.copytree(started / 'data', started / 'moved' / 'here')),
            pairs(started / 'data', space(name='other')),
            SegmentationDataset(list(rows(started / 'data')), space(), augment=AUGMENT),
        )
    ):
        out = shutil.copytree(started / 'out', started / f'out{i}')
        again = model(seed=9)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            go_on(out, data, replace(CONFIG, workers=i % 2), again)
        assert same_end(whole, again), i


def test_skipping_broken_files_may_begin_later(started):
    go_on(started / 'out', pairs(started / 'data', on_unreadable='skip'))


def test_names_in_two_unicode_forms(tmp_path):
    import unicodedata
    from idrnet_nb.data.fingerprint import file_table

    forms = [[dict(image=unicodedata.normalize(form, 'Straße/grün_é.png'), label='x.png')] for form in ('NFC', 'NFD')]
    assert forms[0] != forms[1] and file_table(forms[0]) == file_table(forms[1])


def test_rows_of_the_hub(tmp_path):
    "Bytes in memory, as lists or `datasets`, selected or not: known by name and length, without being read."
    from datasets import Dataset, Features, Image as Files
    from idrnet_nb.data.fingerprint import file_table

    kept = held(write(tmp_path / 'data'))
    kinds = Features(image=Files(decode=False), label=Files(decode=False))
    hub = Dataset.from_list(kept, kinds)
    assert file_table(hub) == file_table(kept) and file_table(hub.select([5, 2, 2])) == file_table(
        [kept[i] for i in (5, 2, 2)]
    )
    assert file_table(Dataset.from_list(kept[:3], kinds).select([1])) == file_table(kept[1:2])
    from datasets import concatenate_datasets

    assert file_table(concatenate_datasets([hub.select([1, 3]), hub])) == file_table([kept[1], kept[3], *kept])
    begin(tmp_path / 'out', SegmentationDataset(hub, space(), augment=AUGMENT))
    refuses(
        tmp_path / 'out',
        SegmentationDataset(hub.select([1, 0, *range(2, 8)]), space(), augment=AUGMENT),
        'image 0 was street_0.png',
    )
    go_on(tmp_path / 'out', SegmentationDataset(kept, space(), augment=AUGMENT))


# --- data that are no Pairs


class Drawn(torch.utils.data.Dataset):
    "Images that draw from every global source of chance, and change with the epoch."

    def __init__(self, base=100.0, n=9):
        self.base, self.n, self.epoch = base, n, 0

    def __len__(self):
        return self.n

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        label = torch.arange(256).reshape(16, 16) % K
        return (
            torch.full((3, 16, 16), self.base + i + self.epoch) + random.random() + np.random.rand() + torch.rand(1)
        ).clamp(0, 255), label


ANY = {
    'a list': (lambda: [*ToyWorld(9, 32)], lambda: [*ToyWorld(9, 32, seed=1)], 'item 0'),
    'drawn': (lambda: Drawn(), lambda: Drawn(110.0), 'item 0 had the mean colour'),
    'world': (lambda: ToyWorld(9, 32), lambda: ToyWorld(9, 32, seed=1), 'item 0'),
    'another size': (lambda: ToyWorld(9, 32), lambda: ToyWorld(9, 40), 'item 0 was [3, 32, 32], is [3, 40, 40]'),
    'a part': (
        lambda: Subset(ToyWorld(20, 32), range(9)),
        lambda: Subset(ToyWorld(20, 32), range(1, 10)),
        'other indices',
    ),
    'a part of other': (
        lambda: Subset(ToyWorld(20, 32), range(9)),
        lambda: Subset(ToyWorld(20, 32, seed=2), range(9)),
        'item 0',
    ),
    'parts': (
        lambda: ConcatDataset([ToyWorld(4, 32), ToyWorld(5, 32, seed=1)]),
        lambda: ConcatDataset([ToyWorld(4, 32), ToyWorld(5, 32, seed=2)]),
        'part 1: item 0',
    ),
    'other parts': (
        lambda: ConcatDataset([ToyWorld(4, 32), ToyWorld(5, 32)]),
        lambda: ConcatDataset([ToyWorld(4, 32), ToyWorld(4, 32), ToyWorld(1, 32)]),
        'there were 2 parts, there are 3',
    ),
    'another kind': (
        lambda: ConcatDataset([ToyWorld(4, 32), ToyWorld(5, 32)]),
        lambda: ToyWorld(9, 32),
        'another kind',
    ),
}


@pytest.mark.parametrize('what', ANY)
@pytest.mark.parametrize('workers', [0, 1])
def test_any_dataset(tmp_path, what, workers):
    make, other, said = ANY[what]
    k = K if what == 'drawn' else 12
    config = replace(CONFIG, workers=workers)
    first = make()
    begin(tmp_path / 'out', first, config=config) if k == K else begin_world(tmp_path / 'out', first, config)
    before = contents(tmp_path / 'out')
    with pytest.raises(ValueError, match='of another training') as e:
        go_on(tmp_path / 'out', other(), config, model(k))
    assert said in str(e.value) and contents(tmp_path / 'out') == before
    for data in (first, make()):  # the one that was used, and a new one
        go_on(shutil.copytree(tmp_path / 'out', tmp_path / str(id(data))), data, config, model(k))


def begin_world(out, data, config):
    def on_step(step):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(model(12), data, config, 'cpu', False, on_step, out, save_every=3)


def test_describing_leaves_no_trace(tmp_path):
    "With a folder and without: the same chance, the same weights."
    ends = []
    for out in (None, tmp_path / 'out'):
        net, data = model(), Drawn()
        train(net, data, CONFIG, 'cpu', False, out=out)
        ends.append((net, torch.rand(1).item(), random.random(), np.random.rand(), data.epoch))
    assert same_end(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


class Keeper(Drawn):
    "Opens its files when the first item is read, as HDF5 sets must: in a loading process, and nowhere else."

    opened = None

    def __getitem__(self, i):
        self.opened = os.getpid()
        return super().__getitem__(i)


def test_files_that_a_loading_process_opens(tmp_path):
    data = Keeper()
    train(model(), data, replace(CONFIG, workers=1), 'cpu', False, out=tmp_path)
    assert data.opened is None


class Told(Drawn):
    "Somebody else's dataset, which says what must stay."

    def describe(self):
        return dict(kind='told', base=self.base)


def test_a_dataset_of_ones_own_describes_itself(tmp_path):
    begin(tmp_path, Told())
    refuses(tmp_path, Told(100.5), 'base was 100.0, is 100.5')
    go_on(tmp_path, Told())


class Chatty(Drawn):
    "`describe` is another method's name here, or says what JSON cannot."

    def __init__(self, said):
        super().__init__()
        self.said = said

    def describe(self):
        return self.said


@pytest.mark.parametrize('said', ['9 items', None, dict(size=np.int64(3), f=max, crop=(np.int32(4), 5))], ids=str)
def test_what_describe_may_say(tmp_path, said):
    begin(tmp_path, Chatty(said))
    go_on(tmp_path, Chatty(said))


class Private(Drawn):
    "A generator of its own: no two readings are the same."

    def __init__(self):
        super().__init__()
        self.own = np.random.default_rng(0)

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x * 0 + self.own.integers(0, 255)), y


def test_what_cannot_be_compared_is_said(tmp_path):
    begin(tmp_path, Private())
    with pytest.warns(UserWarning, match='cannot be compared: make sure that the data are the same'):
        go_on(tmp_path, Private())


def test_checkpoints_of_before(started):
    "They say nothing of the data: they are resumed, with a warning."
    for c in checkpoints(started / 'out' / 'checkpoints'):
        got = load_checkpoint(started / 'out' / 'checkpoints', c['step'])
        save_checkpoint(
            started / 'out' / 'checkpoints',
            c['step'],
            got['state'],
            {k: v for k, v in got['about'].items() if k not in ('data', 'judged')},
        )
    with pytest.warns(UserWarning, match='does not say which data'):
        go_on(started / 'out', pairs(started / 'data'), eval_fn=Evaluator(pairs(started / 'data', augment=None)))


# --- judges


def test_a_judge_of_other_data_is_said(started):
    data = pairs(started / 'data')
    unseen, other = (
        SegmentationDataset(rows(write(started / f'unseen{i}', 2, seed=50 + i)), space()) for i in range(2)
    )
    begin(started / 'new', data, eval_fn=Evaluator(unseen))
    for judge, word in (
        (Evaluator(other), 'image 0 (street_0.png) had'),
        (Evaluator(unseen, EvalProtocol((24, 24))), 'protocol was None'),
    ):
        with pytest.warns(UserWarning, match='scores before and after cannot be compared') as told:
            go_on(shutil.copytree(started / 'new', started / word[:5]), data, eval_fn=judge)
        assert any(word in str(w.message) for w in told)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        go_on(shutil.copytree(started / 'new', started / 'same'), data, eval_fn=Evaluator(unseen))
        go_on(shutil.copytree(started / 'new', started / 'none'), data)  # no judge any more: nothing to compare


# --- what else lies in the folder


def test_a_checkpoint_of_another_training_among_them(started):
    other = started / 'other'
    begin(other, pairs(started / 'data'), stop=2, config=replace(CONFIG, steps=9))
    shutil.copy(other / 'checkpoints' / 'step-00000001.safetensors', started / 'out' / 'checkpoints')
    refuses(started / 'out', pairs(started / 'data'), 'config.steps was 9, is 6', 'step-00000001')


def test_more_steps_are_another_schedule(started):
    refuses(started / 'out', pairs(started / 'data'), 'config.steps was 6, is 12', config=replace(CONFIG, steps=12))


@pytest.mark.parametrize('text', ['{"epoch": 1, "loss": 2}\n', '17\n', 'no JSON at all'])
@pytest.mark.parametrize('resume', [True, False])
def test_a_log_of_somebody_else(started, text, resume):
    for out in (started / 'out', started / 'new'):
        out.mkdir(exist_ok=True)
        (out / 'log.jsonl').write_text(text)
        if out.name == 'out' and not resume:
            continue  # a training is there: that is said
        with pytest.raises(ValueError, match='log.jsonl that no training has written'):
            train(model(), pairs(started / 'data'), CONFIG, 'cpu', False, out=out, resume=resume)
        assert (out / 'log.jsonl').read_text() == text


def test_a_log_or_a_model_without_checkpoints(started):
    out, data = started / 'out', pairs(started / 'data')
    shutil.rmtree(out / 'checkpoints')
    before = contents(out)
    for resume in (True, False):
        with pytest.raises(ValueError, match='holds a saved model, and no checkpoint'):
            train(model(), data, CONFIG, 'cpu', False, out=out, resume=resume)
    assert contents(out) == before
    (out / 'model.safetensors').unlink()
    with pytest.raises(FileExistsError, match='holds the log of a training, and no checkpoint'):
        train(model(), data, CONFIG, 'cpu', False, out=out)
    with pytest.warns(UserWarning, match='begins anew, 2 lines of its log are dropped'):
        go_on(out, data)


# --- refused before the first step


def refused_early(data, error, match, out=None, net=None, **how):
    def on_step(step):
        raise AssertionError('a step was taken')

    net = net or model()
    before, there = [p.clone() for p in net.parameters()], contents(out.parent) if out else {}
    with pytest.raises(error, match=match):
        train(net, data, CONFIG, 'cpu', False, on_step, out, **how)
    assert all(map(torch.equal, before, net.parameters())) and (not out or contents(out.parent) == there)


@pytest.mark.parametrize(
    'name,text',
    [
        ('config.json', '{"model_type": "bert"}'),
        ('config.json', '{"model": {"format": 1}}'),
        ('config.json', '[]'),
        ('README.md', '# mine'),
    ],
)
def test_a_foreign_file(tmp_path, name, text):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_text(text)
    refused_early(
        pairs(write(tmp_path / 'data')),
        ValueError,
        f'holds a {name} that does not belong to a saved model',
        tmp_path / 'out',
    )


def test_a_folder_that_cannot_be(tmp_path, monkeypatch):
    data = pairs(write(tmp_path / 'data'))
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'file').write_text('')
    refused_early(data, ValueError, 'is a file; give a folder', tmp_path / 'x' / 'file')
    refused_early(data, ValueError, 'is a file; give a folder', tmp_path / 'x' / 'file' / 'deep' / 'er')
    (tmp_path / 'x' / 'link').symlink_to(tmp_path / 'nowhere')
    refused_early(data, ValueError, 'a link that leads nowhere', tmp_path / 'x' / 'link')
    (tmp_path / 'x' / 'out').mkdir()
    (tmp_path / 'x' / 'out' / 'checkpoints').write_text('')
    refused_early(data, ValueError, "checkpoints' is a file", tmp_path / 'x' / 'out')
    refused_early(data, ValueError, r'cannot be a folder \(File name too long\)', tmp_path / 'x' / ('long' * 99))
    with monkeypatch.context() as m:
        m.setattr(Path, 'mkdir', lambda *a, **k: (_ for _ in ()).throw(OSError(30, 'Read-only file system')))
        refused_early(
            data, OSError, 'nothing can be written to out=.*Read-only.*give another folder', tmp_path / 'x' / 'new'
        )
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    refused_early(data, PermissionError, 'nothing can be written to the folder', tmp_path / 'x' / 'new')


@pytest.mark.parametrize(
    'how,match',
    [
        (dict(eval_fn='test'), "eval_fn='test' cannot be called"),
        (dict(save_every=0), 'save_every=0; give a whole number'),
        (dict(save_every=-1), 'save_every=-1'),
        (dict(keep=0), 'keep=0'),
        (dict(save_every=2.5), 'save_every=2.5'),
        (dict(live=True), 'live=True draws into a Jupyter notebook'),
        (dict(tensorboard=True), 'pip install tensorboard'),
    ],
    ids=str,
)
def test_options_that_cannot_work(tmp_path, monkeypatch, how, match):
    import sys

    monkeypatch.delitem(sys.modules, 'IPython', raising=False)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    refused_early(pairs(write(tmp_path / 'data')), ValueError, match, tmp_path / 'x' / 'out', **how)


def test_data_that_cannot_be(tmp_path):
    data = [(torch.zeros(3, 16, 16), torch.zeros(16, 16).long())] * 4
    refused_early(data, ValueError, 'the model has one class', net=model(1))
    for odd in (iter(data), (x for x in data)):
        refused_early(odd, ValueError, 'no items by number')


# --- items

ITEM = (torch.full((3, 16, 16), 100, dtype=torch.uint8), torch.arange(256).reshape(16, 16) % K)


@pytest.mark.parametrize(
    'kind', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, 'numpy']
)
def test_labels_of_any_integers(kind):
    "The same training, bit for bit."
    ends = []
    for label in (ITEM[1], ITEM[1].numpy().astype(np.uint16) if kind == 'numpy' else ITEM[1].to(kind)):
        net = model()
        train(net, [(ITEM[0], label)] * 4, CONFIG, 'cpu', False)
        ends.append(net)
    assert same_end(*ends)


def test_a_batch_of_several_integers():
    train(
        model(),
        [(ITEM[0], ITEM[1].to(kind)) for kind in (torch.uint8, torch.int8, torch.int64, torch.int16)],
        CONFIG,
        'cpu',
        False,
    )


@pytest.mark.parametrize(
    'item,said',
    [
        (dict(image=ITEM[0], label=ITEM[1]), 'a dict of image, label'),
        ((*ITEM, 'name.png'), 'is 3 things'),
        (ITEM[0], 'is Tensor'),
        ((Image.new('RGB', (16, 16)), ITEM[1]), 'the image of an item is a Image'),
        ((ITEM[0], None), 'the label of an item is a NoneType'),
        ((ITEM[0], ITEM[1].float()), 'a label is float32'),
        ((ITEM[0], ITEM[1][None]), 'drop the channel axis: label[0]'),
        ((ITEM[0], ITEM[1][:8]), 'its label (8, 16) differ in size'),
        ((ITEM[0], ITEM[1] - 1), 'ids outside 0..2'),
    ],
    ids=lambda x: x if isinstance(x, str) else '',
)
@pytest.mark.parametrize('workers', [0, 1])
def test_items_that_are_no_pairs(item, said, workers):
    "Named with step and item, in plain words, whoever loads them."
    data = [ITEM] * 3 + [item]
    with pytest.raises(ValueError) as e:
        train(model(), data, replace(CONFIG, workers=workers), 'cpu', False)
    assert (
        said in str(e.value)
        and re.search('step [01]: ', str(e.value))
        and 'image 3' in str(e.value)
        and 'Traceback' not in str(e.value)
    )


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_file_in_training(tmp_path, workers):
    data = pairs(write(tmp_path))
    (tmp_path / 'masks' / 'street_5.png').write_bytes(b'no image')
    with pytest.raises(ValueError) as e:
        train(model(), data, replace(CONFIG, workers=workers), 'cpu', False)
    assert 'street_5.png' in str(e.value) and 'Traceback' not in str(e.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_fault_of_ones_own_dataset_is_its_own(workers):
    class Faulty(Drawn):
        def __getitem__(self, i):
            return {}[i]

    with pytest.raises(KeyError) as e:
        train(model(), Faulty(), replace(CONFIG, workers=workers), 'cpu', False)
    assert 'Traceback' not in str(e.value)


def test_sizes_that_differ_name_the_files(tmp_path):
    data = SegmentationDataset(rows(write(tmp_path)), space())
    Image.new('RGB', (30, 20)).save(tmp_path / 'images' / 'street_0.png')
    Image.new('L', (30, 20)).save(tmp_path / 'masks' / 'street_0.png')
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r'several sizes.*\(step \d: .*street_\d.*street_\d') as e:
            train(model(), data, replace(CONFIG, workers=workers), 'cpu', False)
        assert 'Traceback' not in str(e.value)


# --- what no label holds


def labelled(*ids, n=4):  # n items whose labels hold these ids
    return [(ITEM[0], torch.tensor(ids)[torch.arange(256).reshape(16, 16) % len(ids)])] * n


def told(f):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return [str(x.message) for x in w if 'train:' in str(x.message)]


@pytest.mark.parametrize('steps', [2, 5])
def test_a_class_that_no_label_holds(steps):
    config = replace(CONFIG, steps=steps)
    assert told(lambda: train(model(), labelled(0, 1, 2), config, 'cpu', False)) == []
    (said,) = told(lambda: train(model(), labelled(0, 1), config, 'cpu', False))
    assert 'no pixel in the labels of 4 images has class 2, so it cannot be learnt' in said and 'ignored' not in said
    (said,) = told(lambda: train(model(), labelled(0, 255), config, 'cpu', False))
    assert 'class 1, 2' in said and '50 % of all pixels are ignored (in the masks: 255)' in said


def test_masks_of_0_and_255(tmp_path):
    "The commonest of all: what to write into the class list is said."
    for kind in ('images', 'masks'):
        (tmp_path / kind).mkdir()
    for i in range(6):
        label = np.zeros((16, 16), np.uint8)
        label[4:8, 4:12] = 255
        Image.fromarray(label).save(tmp_path / 'masks' / f'{i}.png')
        Image.new('RGB', (16, 16)).save(tmp_path / 'images' / f'{i}.png')
    data = SegmentationDataset(rows(tmp_path), space(('background', 'object'), (0, 1)))
    (said,) = told(lambda: train(model(2), data, CONFIG, 'cpu', False))
    assert (
        'class 1 (object)' in said and '12 % of all pixels are ignored' in said and 'by the line "object, 255"' in said
    )
    (said,) = told(lambda: train(model(2), Subset(data, range(6)), CONFIG, 'cpu', False))
    assert 'class 1 (object)' in said


def test_padding_is_not_ignored_and_what_vanishes_is_told_from_what_is_nowhere(tmp_path):
    "Crops are larger than the images, no mask has an ignored pixel, class 1 is a pixel that resizing loses."
    for kind in ('images', 'masks'):
        (tmp_path / kind).mkdir()
    for i in range(6):
        label = np.zeros((32, 32), np.uint8)
        label[15, 15] = 1
        Image.fromarray(label).save(tmp_path / 'masks' / f'{i}.png')
        Image.new('RGB', (32, 32)).save(tmp_path / 'images' / f'{i}.png')
    names = space(('background', 'dot', 'bird'), (0, 1, 2))
    data = SegmentationDataset(rows(tmp_path), names, (8, 8), Augment(crop=(16, 16), scale=(1.0, 1.0)))
    assert (data[0][1] == 255).any() and not (data[0][1] == 1).any()
    said = told(lambda: train(model(), data, CONFIG, 'cpu', False))
    assert len(said) == 2 and 'ignored' not in ''.join(said)
    assert 'class 2 (bird), so it cannot be learnt' in said[0]
    assert 'no pixel of class 1 (dot) is in the crops' in said[1] and '--size' in said[1]
    data.pixels = [6 * 1023, 6, 0]  # bird was shown, and allowed, before
    assert told(lambda: train(model(), data, CONFIG, 'cpu', False)) == said[1:]


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_labels_that_are_ignored_altogether(steps, tmp_path):
    with pytest.raises(ValueError, match='every pixel in the labels of . images is ignored'):
        train(model(), labelled(255), replace(CONFIG, steps=steps), 'cpu', False, out=tmp_path)


def test_a_few_images_prove_nothing():
    assert told(lambda: train(model(12), [*ToyWorld(4, 32)], CONFIG, 'cpu', False)) == []  # fewer images than classes
