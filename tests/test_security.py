"""A saved model may come from a stranger: nothing that its files say runs code, asks the network, opens a file elsewhere or takes all memory."""

import json
import os
import pickle
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from idrnet_nb.models.weights import OPTIONS, load_weights
from idrnet_nb.models.backbone import Backbone, timm_pyramid
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.models.segmentor import Segmentor, build_segmentor
from idrnet_nb.training.inference import load_model, save_model, trained_size
from idrnet_nb.training.recipes import Recipe, laptop

K, SMALL = 3, dict(width=8, attention_width=4, aux_width=4)
SPACE = LabelSpace('made up', ('a', 'b', 'c'), tuple(map(tuple, palette(3).tolist())))


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    "Settings and weights of two small models, one with a network of timm."
    out = {}
    for name, how in (
        ('tiny', dict(backbone_args=dict(width=4))),
        ('resnet18', dict(backbone_args=dict(layers=(1, 1, 1, 1), channels=(8, 12, 16, 24)))),
    ):
        folder = tmp_path_factory.mktemp(name)
        save_model(build_segmentor('fcn', name, K, **how, **SMALL), folder, SPACE, (32, 32))
        out[name] = json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')
    return out


def write(folder, config, weights):
    "A saved model whose two files agree."
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / 'config.json').write_text(text)
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt', 'config': text})
    return folder


def changed(config, **parts):
    return {**config, **{k: {**config[k], **v} for k, v in parts.items()}}


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def evil(tmp_path):
    "(a pickle that makes a file when it is read, the file that it makes)"
    mark, file = tmp_path / 'code-ran', tmp_path / 'evil.pth'
    torch.save(dict(state_dict=Evil(mark)), file)
    assert not mark.exists()
    return file, mark


@pytest.fixture
def no_network(monkeypatch):
    asked = []

    def ask(*args, **kwargs):
        asked.append(args)
        raise OSError('the network was asked')

    for owner, name in (
        (socket, 'create_connection'),
        (socket, 'getaddrinfo'),
        (socket.socket, 'connect'),
        (socket.socket, 'connect_ex'),
    ):
        monkeypatch.setattr(owner, name, ask)
    return asked


def test_the_pickle_is_evil(evil):
    file, mark = evil
    torch.load(file, weights_only=False)
    assert mark.exists()


# --- what settings say of the backbone
def outside(file):  # what timm would follow, by key
    return dict(
        checkpoint_path=str(file),
        cache_dir=str(file.parent),
        weights=str(file),
        pretrained=True,
        pretrained_cfg=dict(file=str(file), custom_load=True),
        pretrained_cfg_overlay=dict(file=str(file)),
        pretrained_strict=False,
        scriptable=True,
        exportable=True,
        features_only=False,
        hf_hub_id='a/b',
        feature_cls='x',
        block_args='x',
        model_args=dict(),
        kwargs_filter=['x'],
        norm_kwargs={'a': {'b': {'c': 1}}},
        stem_backbone='x',
        device='cuda',
        layers=str(file),
        pad_type='../../x',
        stem_type=['a', '/b'],
        depths=[[['deep']]],
        drop_path_rate=7,
        layers_=1,
        url='http://localhost/x',
    )


NAMES = (
    'hf-hub:somebody/net',
    'hf_hub:somebody/net',
    'local-dir:/tmp',
    'local-dir:..',
    'timm:resnet18',
    'timm/resnet18',
    '../resnet18',
    '/etc/passwd',
    'C:\\nets\\resnet18',
    'resnet18/../x',
    'hf-hub',
    'https://localhost/x',
    'resnet18?x',
    'resnet18@main',
    'resnet18#x',
    ' resnet18',
    '',
    'a' * 300,
    'resnet18\n',
)

KEYS = tuple(outside(Path('x')))


@pytest.mark.parametrize('key', KEYS)
def test_options_from_settings(parts, tmp_path, evil, no_network, key):
    (config, weights), (file, mark) = parts['resnet18'], evil
    folder = write(tmp_path / 'model', changed(config, backbone={key: outside(file)[key]}), weights)
    for read in (load_model, Segmentor.from_pretrained):
        with pytest.raises(ValueError, match=rf"config\.json.*{key}"):
            read(folder)
    assert not mark.exists() and not no_network


@pytest.mark.parametrize('key', [k for k in KEYS if k not in ('weights', 'pretrained')])
def test_options_from_the_header_of_weights(parts, tmp_path, evil, no_network, key):
    (_, weights), (file, mark) = parts['resnet18'], evil
    own = {n[len('backbone.net.') :]: t for n, t in weights.items() if n.startswith('backbone.net.')}
    save_file(own, tmp_path / 'w.safetensors', metadata=dict(timm=f'resnet18, {key}={outside(file)[key]!r}'))
    with pytest.raises(ValueError, match=rf"w\.safetensors.*header.*{key}"):
        Backbone('resnet18', weights=tmp_path / 'w.safetensors')
    assert not mark.exists() and not no_network


@pytest.mark.parametrize('name', [*NAMES, None, 7, ['resnet18'], {}])
def test_state_dict_names(parts, tmp_path, no_network, name):
    config, weights = parts['resnet18']
    folder = write(tmp_path / 'model', changed(config, backbone=dict(name=name)), weights)
    with pytest.raises(ValueError, match=r"config\.json.*name"):
        load_model(folder)
    with pytest.raises(ValueError, match='backbone'):
        Backbone(name)
    if isinstance(name, str):
        with pytest.raises(ValueError):
            timm_pyramid(name)
        save_file(dict(a=torch.zeros(1)), tmp_path / 'w.safetensors', metadata=dict(timm=name + ', layers=(1,1)'))
        with pytest.raises(ValueError):
            Backbone('resnet18', weights=tmp_path / 'w.safetensors')
    assert not no_network


@pytest.mark.parametrize(
    'note',
    [
        'resnet18, layers',
        'resnet18, layers=open("x")',
        'resnet18, **{}',
        'resnet18, *[]',
        'resnet18, layers=' + '(' * 500,
        'resnet18, layers=' + '9' * 5000,
        'resnet18, layers=1e999',
        'resnet18, layers={}',
        'resnet18, layers=print',
        ',',
        '=',
    ],
)
def test_headers_that_are_no_notes(tmp_path, note):
    save_file(dict(a=torch.zeros(1)), tmp_path / 'w.safetensors', metadata=dict(timm=note))
    with pytest.raises(ValueError, match=r'w\.safetensors'):
        Backbone('resnet18', weights=tmp_path / 'w.safetensors')


def test_a_recipe_of_a_stranger(evil, no_network):
    file, mark = evil
    d = laptop(SPACE, backbone='resnet18', width=8).to_json()
    for key, value in dict(checkpoint_path=str(file), cache_dir='/tmp', pretrained_cfg=dict(file=str(file))).items():
        with pytest.raises(ValueError, match=key):
            Recipe.from_json({**d, 'backbone': {**d['backbone'], key: value}}).build()
    with pytest.raises(ValueError, match='plain name'):
        Recipe.from_json({**d, 'backbone': {'name': 'hf-hub:a/b'}}).build()
    assert not mark.exists() and not no_network


def test_options_are_those_of_published_networks(tmp_path):
    "What shapes a network is allowed, saved, and read again."
    assert not {'checkpoint_path', 'cache_dir', 'pretrained', 'pretrained_cfg', 'weights', 'kwargs'} & set(OPTIONS)
    for name, options in (
        (
            'swin_tiny_patch4_window7_224',
            dict(embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), drop_path_rate=0.1),
        ),
        ('convnext_atto', dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))),
        ('mobilenetv2_035', dict(pad_type='same')),
    ):
        model = build_segmentor('fcn', name, K, backbone_args=options, **SMALL)
        model.save_pretrained(tmp_path / name)
        assert Segmentor.from_pretrained(tmp_path / name).state_dict().keys() == model.state_dict().keys()


# --- the network, and files elsewhere
@pytest.mark.parametrize('name', ['tiny', 'resnet18'])
def test_nothing_is_fetched(parts, tmp_path, no_network, name):
    folder = write(tmp_path / 'model', *parts[name])
    load_model(folder), Segmentor.from_pretrained(folder), trained_size(folder)
    assert not no_network


def test_a_misspelt_folder_is_no_question_for_the_hub(tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').mkdir()
    for name in ('runs/mien', './mien', 'mien', str(tmp_path / 'mien'), '../mien'):
        for read in (load_model, Segmentor.from_pretrained):
            with pytest.raises(FileNotFoundError, match='mien'):
                read(name)
    assert not no_network


_opened, _watching = [], []
sys.addaudithook(lambda event, args: _opened.append(args[0]) if event == 'open' and _watching else None)


def test_no_file_outside_is_opened(parts, tmp_path):
    folder = write(tmp_path / 'model', *parts['resnet18'])
    load_model(folder)  # what is imported once
    _opened.clear()
    _watching.append(1)
    try:
        load_model(folder)
    finally:
        _watching.clear()
    code = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1] / 'idrnet_nb'), '/proc', '/sys')
    opened = {os.path.abspath(os.fsdecode(p)) for p in _opened if isinstance(p, (str, bytes, os.PathLike))}
    assert opened and not [p for p in opened if not p.startswith((str(folder), *code))]


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_links_that_lead_out(parts, tmp_path, name):
    write(tmp_path / 'theirs', *parts['tiny'])
    folder = write(tmp_path / 'model', *parts['tiny'])
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / 'theirs' / name)
    for read in (load_model, Segmentor.from_pretrained, trained_size):
        with pytest.raises(ValueError, match=rf'{name}.*link that leads out of the folder.*theirs.*copy the file'):
            read(folder)


def test_links_that_stay(parts, tmp_path):
    "Inside the folder, to the folder, and as the Hub's cache has them."
    folder = write(tmp_path / 'model', *parts['tiny'])
    (folder / 'config.json').rename(folder / 'other.json')
    (folder / 'config.json').symlink_to('other.json')
    (tmp_path / 'link').symlink_to(folder)
    load_model(folder), load_model(tmp_path / 'link')
    blobs, snapshot = tmp_path / 'models--a--b' / 'blobs', tmp_path / 'models--a--b' / 'snapshots' / '0123'
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    write(tmp_path / 'model2', *parts['tiny'])
    for name in ('config.json', 'model.safetensors'):
        (tmp_path / 'model2' / name).rename(blobs / name[:3])
        (snapshot / name).symlink_to(Path('../../blobs') / name[:3])
    load_model(snapshot)


def test_folders_and_pipes_instead_of_files(parts, tmp_path):
    folder = write(tmp_path / 'model', *parts['tiny'])
    (folder / 'config.json').unlink()
    os.mkfifo(folder / 'config.json')
    with pytest.raises(FileNotFoundError, match='no config.json'):
        load_model(folder)
    folder = write(tmp_path / 'model2', *parts['tiny'])
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors').mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r'model\.safetensors'):
        load_model(folder)


# --- pickles under other names
def test_a_pickle_is_never_read(parts, tmp_path, evil):
    file, mark = evil
    folder = write(tmp_path / 'model', *parts['tiny'])
    for name in ('model.safetensors', 'config.json'):
        good = (folder / name).read_bytes()
        for data in (file.read_bytes(), pickle.dumps(Evil(mark)), pickle.dumps(Evil(mark), protocol=0)):
            (folder / name).write_bytes(data)
            for read in (load_model, Segmentor.from_pretrained):
                with pytest.raises(ValueError, match=rf'{name}.* (cannot be read as safetensors|is no JSON)'):
                    read(folder)
            (tmp_path / 'w.safetensors').write_bytes(data)
            for read in (lambda f: load_weights(torch.nn.Linear(1, 1), f), lambda f: Backbone('tiny', weights=f)):
                with pytest.raises(ValueError, match='cannot be read as safetensors'):
                    read(tmp_path / 'w.safetensors')
        (folder / name).write_bytes(good)
    (folder / 'pytorch_model.bin').write_bytes(file.read_bytes())
    (folder / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='model.safetensors'):
        load_model(folder)
    assert not mark.exists()


# --- more memory than there is
@pytest.mark.parametrize(
    'part',
    [
        dict(head=dict(width=10**9)),
        dict(head=dict(width=10**5)),
        dict(head=dict(attention_width=10**12)),
        dict(head=dict(aux_width=10**8)),
        dict(head=dict(num_classes=10**12, ignore=-1)),
        dict(head=dict(num_classes=10**6, ignore=-1)),
        dict(head=dict(context='aspp', aspp_dilations=[1] * 10**5)),
        dict(backbone=dict(layers=[10**7] * 4)),
        dict(backbone=dict(layers=[10**9, 1, 1, 1])),
        dict(backbone=dict(channels=[10**6] * 4)),
        dict(backbone=dict(layers=[1, 1, 1, 10**5])),
        dict(backbone=dict(base_width=2**24)),
    ],
    ids=lambda p: str(p)[:60],
)
def test_settings_that_ask_for_too_much(parts, tmp_path, part):
    config, weights = parts['resnet18']
    folder, start = (
        write(tmp_path / 'model', {k: v for k, v in changed(config, **part).items() if k != 'space'}, weights),
        time.perf_counter(),
    )
    key = next(k for v in part.values() for k in v).replace('context', 'larger network')
    with pytest.raises(ValueError, match=rf'config\.json.*{key}'):
        Segmentor.from_pretrained(folder)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    'part',
    [
        dict(width=10**12),
        dict(width=10**7),
        dict(pad_to=10**9),
        dict(output_stride=10**9),
        dict(maps=10**9),
        dict(width=-1),
    ],
    ids=str,
)
def test_a_tiny_one_that_asks_for_too_much(parts, tmp_path, part):
    config, weights = parts['tiny']
    folder, key = write(tmp_path / 'model', changed(config, backbone=part), weights), next(iter(part))
    with pytest.raises(
        ValueError, match=rf'(config\.json.*({key}|larger network than the file)|model\.safetensors.*does not fit)'
    ):
        load_model(folder)


@pytest.mark.parametrize(
    'part',
    [
        dict(size=[10**9, 10**9]),
        dict(size=[0, 3]),
        dict(size=[-1, 3]),
        dict(size='64'),
        dict(size=[64]),
        dict(size=[1.5, 3]),
    ],
    ids=str,
)
def test_sizes(parts, tmp_path, part):
    config, weights = parts['tiny']
    folder = write(tmp_path / 'model', {**config, **part}, weights)
    for read in (load_model, trained_size, Segmentor.from_pretrained):
        with pytest.raises(ValueError, match=r'config\.json.*size='):
            read(folder)


# --- JSON that is none
@pytest.mark.parametrize(
    'text,word',
    [
        ('[1]', 'holds a list'),
        ('"x"', 'holds a str'),
        ('7', 'holds a int'),
        ('null', 'holds a NoneType'),
        ('', 'is no JSON'),
        ('{"a": ', 'is no JSON'),
        ('[' * 200_000, 'is no JSON'),
        ('{"a":' * 100_000, 'is no JSON'),
        ('{"a":' * 50 + '1' + '}' * 50, 'nested more than'),
        ('{"a": NaN}', 'a is nan'),
        ('{"head": {"eps": Infinity}}', r'head\.eps is inf'),
        ('{"head": {"eps": 1e999}}', r'head\.eps is inf'),
        ('{"format": ' + '9' * 5000 + '}', 'is no JSON'),
    ],
)
def test_what_is_no_settings(parts, tmp_path, text, word):
    folder = write(tmp_path / 'model', text, parts['tiny'][1])
    for read in (load_model, Segmentor.from_pretrained, trained_size):
        with pytest.raises(ValueError, match=rf'config\.json.*{word}'):
            read(folder)


def test_a_header_that_is_no_settings(parts, tmp_path):
    config, weights = parts['tiny']
    folder = write(tmp_path / 'model', config, weights)
    for text in ('[1]', '[' * 200_000, '{"a": NaN}', 'x'):
        save_file(weights, folder / 'model.safetensors', metadata=dict(config=text))
        with pytest.raises(ValueError, match=r'header of .*model\.safetensors'):
            load_model(folder)


def test_a_huge_config(parts, tmp_path):
    folder = write(tmp_path / 'model', *parts['tiny'])
    with open(folder / 'config.json', 'r+b') as f:
        f.truncate(2**30)
    with pytest.raises(ValueError, match=r'config\.json.*larger than'):
        load_model(folder)


def test_bytes_that_are_no_text(parts, tmp_path):
    folder = write(tmp_path / 'model', *parts['tiny'])
    good = (folder / 'config.json').read_bytes()
    (folder / 'config.json').write_bytes(b'\xff\xfe' + good)
    with pytest.raises(ValueError, match=r'config\.json.*is no JSON'):
        load_model(folder)
    (folder / 'config.json').write_bytes(b'\xef\xbb\xbf' + good)  # as a Windows editor leaves it
    load_model(folder)


def test_nan_of_measurements(tmp_path):
    "A class that was never seen has no IoU: nothing is written for it, and older files that wrote nan are read."
    model = build_segmentor('fcn', 'tiny', K, **SMALL)
    folder = save_model(model, tmp_path / 'model', SPACE, results=[dict(miou=float('nan'), acc=1.0)])
    assert json.loads((folder / 'config.json').read_text())['results'] == [dict(miou=None, acc=1.0)]
    with safe_open(folder / 'model.safetensors', 'pt') as f:
        config = json.loads(f.metadata()['config'])
    config['results'][0]['miou'] = float('nan')
    write(folder, config, load_file(folder / 'model.safetensors'))
    assert load_model(folder)[0].about['results'][0]['acc'] == 1.0


def test_what_json_cannot_hold_is_named_before_anything_is_written(tmp_path):
    model = build_segmentor('fcn', 'tiny', K, **SMALL)
    for value, word in ((torch.zeros(2), 'note.x is a Tensor'), (Path('/x'), 'note.x is a PosixPath')):
        with pytest.raises(ValueError, match=word):
            save_model(model, tmp_path / 'model', SPACE, note=dict(x=value))
        model.about.clear()
    assert not (tmp_path / 'model').exists()
    import numpy as np

    save_model(model, tmp_path / 'model', SPACE, note=dict(x=np.float32(0.5), y=np.int64(3)))
    assert load_model(tmp_path / 'model')[0].about['note'] == dict(x=0.5, y=3)
