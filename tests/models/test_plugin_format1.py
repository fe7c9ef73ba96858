"""Plugged models that were saved in format 1 load today, with a warning: our own model with IDR put in
(tests/recorded/plugged1, written at format 1), a folder of transformers, and plain state dicts."""

import json, sys, warnings
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file

from idrnet_nb.models.format1 import current_name, current_plugin_name, upgrade_state
from idrnet_nb.models.plugin import PLUGIN_FORMAT, PluginNote, add_idr, get_idr, idr_loss
from idrnet_nb.common.files import read_safetensors_header
from idrnet_nb.models.plugin_files import HEADER_KEY, load_plugged, names_today, save_plugged
from idrnet_nb.models.segmentor import build_segmentor
from test_plugin import answer, batch, hf_segformer, toy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
from record_names import to_recorded_plugin

RECORDED = Path(__file__).resolve().parents[1] / 'recorded' / 'plugged1'
pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def state_then(state, at):
    return {
        f'{at}.{to_recorded_plugin(n.removeprefix(at + "."))}' if n.startswith(at + '.') else n: t
        for n, t in state.items()
    }


def ours():
    return build_segmentor(
        'upernet',
        'tiny',
        3,
        idr=False,
        width=4,
        attention_width=2,
        aux_width=2,
        dropout=0.0,
        backbone_args=dict(width=4),
    )


def trained(model):
    x, y = batch()
    model.train()(x)
    idr_loss(model, y)
    with torch.no_grad():
        get_idr(model).final.logits.weight.normal_()
    return model


def told(load):
    "What is loaded, and how often it is said that it is of format 1."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        model = load()
    return model, sum('format 1' in str(w.message) for w in seen)


def test_our_own_model_of_format_1(tmp_path):
    recorded = load_file(RECORDED / 'ours_outputs.safetensors')
    model, warned = told(lambda: load_plugged(ours(), RECORDED / 'ours.safetensors'))
    assert warned == 1 and type(model.head.classifier.logits).__name__ == 'IDRClassifier'
    with torch.no_grad():
        logits = model.eval()(recorded['images']).logits
    torch.testing.assert_close(logits, recorded['logits'], rtol=1e-5, atol=1e-5)
    assert get_idr(model).idr.deletion_count.sum().round() == 3 and get_idr(model).idr.memory.any()
    again, warned = told(lambda: load_plugged(ours(), save_plugged(model, tmp_path / 'a.safetensors')))
    assert (
        warned == 0
        and PluginNote(**json.loads(read_safetensors_header(tmp_path / 'a.safetensors').metadata[HEADER_KEY])).format
        == PLUGIN_FORMAT
        == 2
    )
    with torch.no_grad():
        assert again.eval()(recorded['images']).logits.equal(logits)


def test_a_model_of_format_1_that_does_not_fit_is_left_alone():
    model = build_segmentor('fcn', 'tiny', 3, idr=False, width=4, aux_width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match='saved from a Segmentor with 3 classes, and does not fit'):
        load_plugged(model, RECORDED / 'ours.safetensors')
    assert all(t.equal(before[n]) for n, t in model.state_dict().items()) and model.state_dict().keys() == before.keys()


def test_a_folder_of_transformers_of_format_1(tmp_path):
    model, (x, _) = trained(add_idr(hf_segformer())), batch()
    model.save_pretrained(tmp_path)
    file, config = tmp_path / 'model.safetensors', tmp_path / 'config.json'
    at, said = 'decode_head.classifier', json.loads(config.read_text())
    save_file(state_then(load_file(file), at), file, metadata={'format': 'pt'})
    said['idrnet_nb_plug']['format'] = 1
    config.write_text(json.dumps(said))
    other, warned = told(lambda: load_plugged(hf_segformer(), tmp_path))
    assert warned == 1 and answer(other, x).equal(answer(model, x))


@pytest.mark.parametrize('maker,at', [(toy, '3'), (hf_segformer, 'decode_head.classifier')])
def test_a_state_dict_of_format_1(maker, at):
    "Of a checkpoint of one's own, or of a Trainer."
    model, (x, _) = trained(add_idr(maker(), at=at)), batch()
    state = state_then(model.state_dict(), at)
    assert state.keys() != model.state_dict().keys()
    other = add_idr(maker(), at=at)
    _, warned = told(lambda: other.load_state_dict(state))
    assert warned == 1 and answer(other, x).equal(answer(model, x))
    assert list(state) == list(state_then(model.state_dict(), at))  # what was given is as it was
    _, warned = told(lambda: other.load_state_dict(model.state_dict()))
    assert warned == 0
    state.pop(f'{at}.context.memory')
    with pytest.raises(RuntimeError, match='Missing key.*idr.memory'):
        other.load_state_dict(state)


def test_a_state_dict_of_our_own_model():
    recorded = load_file(RECORDED / 'ours_outputs.safetensors')
    model = add_idr(ours(), width=4, dim=2)
    _, warned = told(lambda: model.load_state_dict(upgrade_state(load_file(RECORDED / 'ours.safetensors'))))
    with torch.no_grad():
        logits = model.eval()(recorded['images']).logits
    assert warned == 1
    torch.testing.assert_close(logits, recorded['logits'], rtol=1e-5, atol=1e-5)


def test_names_of_today_stay():
    names = list(add_idr(toy(), at='3').state_dict())
    inside = [n.removeprefix('3.') for n in names if n.startswith('3.')]
    assert [current_plugin_name(n) for n in inside] == inside and [
        current_plugin_name(to_recorded_plugin(n)) for n in inside
    ] == inside
    assert names_today(names, '3', False) == {n: n for n in names}
    assert current_name('head.final.score.context.count') == 'head.classifier.logits.context.count'
