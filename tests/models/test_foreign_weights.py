"""What a review found at the doors of saved models, foreign weights and foreign backbones."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from idrnet_nb.models.author_checkpoints import read_checkpoint
from idrnet_nb.training.convert import convert
from idrnet_nb.models.backbone import Backbone
from idrnet_nb.models.weights import colour_stats
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.method.layers import pixel_losses
from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy
from idrnet_nb.models.head import HeadConfig
from idrnet_nb.models.segmentor import Segmentor, build_segmentor
from idrnet_nb.training.inference import EvalProtocol, evaluate, load_model, save_model
from idrnet_nb.training.save_predictions import save_ids
from idrnet_nb.training.losses import Criterion, lovasz, soft_dice
from idrnet_nb.training.metrics import Meter
from idrnet_nb.models.plugin import add_idr
from idrnet_nb.models.plugin_files import save_plugged
from idrnet_nb.models.hub import check_folder

SMALL = dict(width=8, attention_width=4, aux_width=4)
SPACE = LabelSpace('toy', ('a', 'b'), ((0, 0, 0), (9, 9, 9)))


def model_of():
    return build_segmentor('fcn', 'tiny', 2, backbone_args=dict(width=4), **SMALL)


# --- settings of a stranger
@pytest.mark.parametrize(
    'name,note', [('tiny', 'width=8000'), ('tiny', 'width=60000'), ('convnext_atto', 'depths=(400,400,400,400)')]
)
def test_the_header_of_weights_asks_for_no_more_than_the_file_can_fill(tmp_path, name, note):
    file, start = tmp_path / 'w.safetensors', time.perf_counter()
    save_file({'a': torch.zeros(1)}, file, metadata=dict(timm=f'{name}, {note}'))
    with pytest.raises(ValueError, match='larger network'):
        Backbone(name, weights=file)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    'name,options',
    [
        ('vit_tiny_patch16_224', dict(depth=2**24)),
        ('vit_tiny_patch16_224', dict(depth=2**16)),
        ('convnext_atto', dict(depths=[2**24 - 1] * 4)),
    ],
)
def test_a_depth_without_end_takes_neither_time_nor_memory(tmp_path, name, options):
    folder, start = save_model(model_of(), tmp_path / 'model', SPACE), time.perf_counter()
    config, weights = json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')
    config['backbone'] = dict(name=name, **options)
    (folder / 'config.json').write_text(json.dumps(config))
    save_file(weights, folder / 'model.safetensors', metadata=dict(config=json.dumps(config)))
    with pytest.raises(ValueError, match=r'config\.json.*depth'):
        load_model(folder)
    assert time.perf_counter() - start < 20


# --- what a backbone expects of its input
class Own(nn.Module):
    "A backbone that somebody wrote."

    def __init__(self, mean, std):
        super().__init__()
        self.channels, self.strides, self.pad_to, self.mean, self.std = [4, 4], [2, 4], 4, mean, std
        self.fine, self.coarse = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)

    def forward(self, x):
        return [fine := self.fine(x), self.coarse(fine)]


def test_a_backbone_of_ones_own_says_its_statistics_in_bytes():
    for mean, std in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0, 0, 0), (0.2, 0.2, 0.2)),
        ((0.485, 0.456, 0.406), (58.0, 57.0, 57.0)),
    ):
        with pytest.raises(ValueError, match='Own.*multiply both by 255'):
            Segmentor(Own(mean, std), HeadConfig(2, **SMALL))
    for mean, std in (((0, 0), (1, 1)), ((0, 0, 0), (1, 1, 0)), ('abc', (1, 1, 1)), ((0, 0, float('nan')), (1, 1, 1))):
        with pytest.raises(ValueError, match='Own: (mean|std)=.*three numbers'):
            Segmentor(Own(mean, std), HeadConfig(2, **SMALL))
    for mean, std in (
        ((0, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (255.0,) * 3),
        (torch.full((3, 1, 1), 127.5), np.full(3, 60.0)),
    ):
        Segmentor(Own(mean, std), HeadConfig(2, **SMALL))


@pytest.mark.parametrize(
    'kind',
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda v: [np.float32(x) for x in v],
        lambda v: torch.tensor(v).view(3, 1, 1),
    ],
)
def test_statistics_as_people_hold_them(kind):
    net = Backbone('tiny', width=4, mean=kind([120.5, 110.0, 100.0]), std=kind([60.0, 50.0, 40.0]))
    assert (net.mean, net.std) == ((120.5, 110.0, 100.0), (60.0, 50.0, 40.0))
    assert json.dumps(net.config) and colour_stats(net.mean, net.std, 'x') == (net.mean, net.std)


# --- what is saved can be read back, and lies over nothing of others
def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = model_of()
    folder, good = save_model(model, tmp_path / 'model', SPACE), (tmp_path / 'model' / 'model.safetensors').read_bytes()
    with torch.no_grad():
        model.head.classifier.logits.weight[0] = float('nan')
    for write in (lambda: save_model(model, folder, SPACE), lambda: model.save_pretrained(folder)):
        with pytest.raises(ValueError, match=r'nan or infinite \(head\.classifier\.logits\.weight'):
            write()
    assert (folder / 'model.safetensors').read_bytes() == good


@pytest.mark.parametrize(
    'about,word',
    [
        (dict(size=64), 'size='),
        (dict(size=(0, 5)), 'size='),
        (dict(size=(1.5, 5)), 'size='),
        (dict(results={'miou': 1}), 'results='),
        (dict(protocol=dict(foo=1)), 'protocol'),
        (dict(protocol=dict(scales=[])), 'protocol'),
        (dict(protocol=3), 'protocol'),
        (dict(head=dict(num_classes=7)), r"\['head'\]"),
        (dict(format=9), r"\['format'\]"),
        (dict(version='2'), r"\['version'\]"),
    ],
    ids=str,
)
def test_what_could_not_be_read_back_is_refused_before(tmp_path, about, word):
    model = model_of()
    with pytest.raises(ValueError, match=word):
        save_model(model, tmp_path / 'model', SPACE, **about)
    assert not (tmp_path / 'model').exists() and not model.about
    load_model(save_model(model, tmp_path / 'model', SPACE))  # and the model is left as it was


def test_settings_as_people_hold_them(tmp_path):
    model, p = model_of(), EvalProtocol((32, 48), flip=True)
    save_model(
        model,
        tmp_path / 'model',
        SPACE,
        size=np.array([32, 48]),
        protocol=p,
        note=dict(yes=np.bool_(True), row=np.arange(2)),
    )
    about = load_model(tmp_path / 'model')[0].about
    assert (
        about['size'] == [32, 48]
        and EvalProtocol(**about['protocol']) == p
        and about['note'] == dict(yes=True, row=[0, 1])
    )


def test_weights_of_others_are_not_written_over(tmp_path):
    save_file({'a': torch.zeros(1)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='model.safetensors that does not belong to a saved model'):
        model_of().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='model.safetensors that does not belong to a saved model'):
        check_folder(tmp_path)
    assert [*load_file(tmp_path / 'model.safetensors')] == ['a']
    folder = save_model(model_of(), tmp_path / 'model', SPACE)
    (folder / 'config.json').unlink()  # as a save leaves it that ended in between
    save_model(model_of(), folder, SPACE)


def test_a_card_of_odd_names(tmp_path):
    odd = LabelSpace('toy\n# Better than all', ('a|b\n---', '\udcff'), ((0, 0, 0), (9, 9, 9)))
    folder = save_model(model_of(), tmp_path / 'model', odd, source=dict(model='x\n# y'))
    card = (folder / 'README.md').read_text(encoding='utf-8')
    assert '\n# Better' not in card and '\n# y' not in card and load_model(folder)[1].classes == odd.classes


@pytest.mark.parametrize(
    'protocol',
    [
        dict(resize=[10**9, 10**9]),
        dict(resize=[10**9, 10**9], keep_ratio=True),
        dict(scales=[1e9]),
        dict(scales=[1.0] * 10**5),
    ],
    ids=lambda p: str(p)[:40],
)
def test_a_strangers_protocol_asks_for_no_endless_images(tmp_path, protocol):
    folder = save_model(model_of(), tmp_path / 'model', SPACE)
    config, weights = json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')
    config['protocol'] = protocol
    (folder / 'config.json').write_text(json.dumps(config))
    save_file(weights, folder / 'model.safetensors', metadata=dict(config=json.dumps(config)))
    with pytest.raises(ValueError, match=r'config\.json.*protocol'):
        load_model(folder)
    EvalProtocol(resize=(512, 10**6), keep_ratio=True)  # the longer side as it comes


# --- ids and data
def test_ids_that_png_cannot_hold_are_refused(tmp_path):
    space = LabelSpace('wide', ('a', 'b'), ((0, 0, 0), (9, 9, 9)), {70000: 0, 5: 1})
    with pytest.raises(ValueError, match='wide.*70000.*65535'):
        save_ids(tmp_path, 'x', torch.zeros(3, 3, dtype=torch.long), space)
    save_ids(
        tmp_path,
        'x',
        torch.zeros(3, 3, dtype=torch.long),
        LabelSpace('fits', ('a', 'b'), ((0, 0, 0), (9, 9, 9)), {65535: 0, 5: 1}),
    )
    assert (np.asarray(Image.open(tmp_path / 'x.png')) == 65535).all()


def test_no_images_are_no_measurement():
    with pytest.raises(ValueError, match='evaluate: data is empty'):
        evaluate(model_of(), [])


# --- checkpoints and plugs
def test_names_of_weights_are_words(tmp_path):
    torch.save({'model': {1: torch.zeros(2)}}, tmp_path / 'x.pth')
    for read in (read_checkpoint, lambda p: convert(p, 'idrnet_fcn_resnet50os8_ade20k', tmp_path / 'out')):
        with pytest.raises(ValueError, match=r'x\.pth.*\[1\] are no names'):
            read(tmp_path / 'x.pth')


def test_a_plug_is_saved_where_and_as_it_can_be_read(tmp_path):
    plugged = add_idr(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)), at='1')
    (tmp_path / 'photo.png').write_text('a photograph')
    (tmp_path / 'd.safetensors').mkdir()
    for name in ('photo.png', '', 'd.safetensors'):
        with pytest.raises(ValueError, match='NAME.safetensors'):
            save_plugged(plugged, tmp_path / name)
    assert (tmp_path / 'photo.png').read_text() == 'a photograph'
    with torch.no_grad():
        plugged[0].weight[0] = float('inf')
    with pytest.raises(ValueError, match=r'nan or infinite \(0\.weight\)'):
        save_plugged(plugged, tmp_path / 'a.safetensors')
    assert not (tmp_path / 'a.safetensors').exists()


# --- losses and counts
@pytest.mark.parametrize('loss', ['ce', 'focal', 'dice', 'lovasz', '.5*ce+dice'])
@pytest.mark.parametrize('wrong', [5, -1, 254])
def test_ids_of_no_class_are_named_by_every_loss(loss, wrong):
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    label[0, 0, 0] = wrong
    doors = [
        lambda: Criterion(loss)(logits, label),
        lambda: pixel_losses(logits, label),
        lambda: tiled_cross_entropy(logits[..., :4, :4], label),
    ]
    for door in doors + [lambda f=f: f(logits, label) for f in (soft_dice, lovasz)]:
        with pytest.raises(ValueError, match=rf'{wrong} \(1 pixels\)'):
            door()
    label[0, 0, 0] = 255
    assert Criterion(loss)(logits, label) > 0


@pytest.mark.parametrize(
    'settings,word',
    [
        (dict(loss='0*ce'), 'asks for nothing'),
        (dict(loss='0*ce+0.0*dice'), 'asks for nothing'),
        (dict(class_weights='abc'), 'one number per class'),
        (dict(class_weights=3), 'one number per class'),
        (dict(class_weights=[1, None]), 'one number per class'),
        (dict(ohem='x'), 'ohem'),
        (dict(ohem=True), 'ohem'),
        (dict(ohem_least='x'), 'ohem_least'),
        (dict(gamma=float('inf')), 'gamma'),
        (dict(gamma='x'), 'gamma'),
    ],
    ids=str,
)
def test_losses_that_cannot_be(settings, word):
    with pytest.raises(ValueError, match=f'Criterion: .*{word}'):
        Criterion(**settings)
    Criterion('0*ce+dice', class_weights=np.ones(3), ohem=np.float32(0.7), ohem_least=np.int64(9), gamma=np.float64(2))


@pytest.mark.parametrize('boundary', [-1, 0, float('nan'), float('inf')])
def test_bands_that_cannot_be(boundary):
    with pytest.raises(ValueError, match='boundary'):
        Meter(3, boundary=boundary)
    with pytest.raises(ValueError, match='boundary'):
        evaluate(
            model_of(),
            [(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8))],
            boundary=boundary,
        )


def test_an_ignore_index_beyond_all_numbers():
    with pytest.raises(ValueError, match='ignore=.* too large'):
        HeadConfig(2, ignore=2**70)
    HeadConfig(2, ignore=-100)


def test_arguments_beside_a_backbone_that_is_built():
    for odd in (
        dict(weights='x.safetensors'),
        dict(pretrained=True),
        dict(output_stride=8),
        dict(backbone_args=dict(width=4)),
    ):
        with pytest.raises(ValueError, match=f'segmentor: {next(iter(odd))}'):
            build_segmentor('fcn', Backbone('tiny', width=4), 2, **odd, **SMALL)
    build_segmentor('fcn', Backbone('tiny', width=4), 2, **SMALL)
