"""tools/zoo.py on two small networks; what it must find in one that lies; the table that it and the battery keep on disk."""

import sys
from pathlib import Path
import pytest, torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import record, zoo  # noqa: E402
from idrnet_nb.models.backbone import Backbone  # noqa: E402
from idrnet_nb.experiments.results import read_rows  # noqa: E402


def test_two_small_ones():
    a, b = zoo.row('MobileNet', 'mobilenetv3_small_100', None, False), zoo.row('HRNet', 'hrnet_w18_small', None, True)
    assert a['failed'] == b['failed'] == ''
    assert (a['strides'], a['output_stride'], a['form'], a['hub'], a['licence']) == (
        '4 8 16 32',
        32,
        'maps',
        'timm/mobilenetv3_small_100.lamb_in1k',
        'apache-2.0',
    )
    assert (b['channels'], b['strides'], b['output_stride'], b['form']) == ('240 240', '4 4', 32, 'side by side')
    assert a['parameters'] == sum(p.numel() for p in Backbone('mobilenetv3_small_100').parameters())
    assert set(a) == set(zoo.COLUMNS) and a['commit'] and a['timm'] and a['torch'] == torch.__version__


def lie(net, **said):
    for k, v in said.items():
        setattr(net, k, v)
    return net


def spare(net):
    net.spare = torch.nn.Parameter(torch.ones(1))
    return net


def hooked(net, f):
    net.register_forward_hook(lambda m, i, o: f(o))
    return net


@pytest.mark.parametrize(
    'spoil,said',
    [
        (lambda n: n, None),
        (lambda n: lie(n, channels=[4, 8, 8, 17]), 'said'),
        (lambda n: lie(n, strides=[2, 4, 4, 8]), 'said'),
        (spare, 'no finite gradient: 1 (spare)'),
        (lambda n: hooked(n, lambda o: [*o[:-1], o[-1] / 0]), 'not finite'),
        (lambda n: hooked(n, lambda o: [*o[:-1], o[-1][..., :-1]]), 'training (65, 97)'),
    ],
)
def test_it_finds_what_is_wrong(spoil, said):
    found = zoo.faults(spoil(Backbone('tiny', width=4)))
    assert said in found if said else found == ''


def test_command_writes_and_replaces(tmp_path, monkeypatch, capsys):
    out = tmp_path / 'b.csv'
    monkeypatch.setattr(
        zoo,
        'row',
        lambda family, name, stride, concat: dict(
            family=family,
            network=name,
            output_stride=stride,
            form='maps',
            parameters=1,
            strides='',
            channels='',
            failed=said,
        ),
    )
    for said, status in (('', 0), ('bad', '3 of 3 failed')):
        monkeypatch.setattr(sys, 'argv', ['zoo', '--only', 'resnet18', '--out', str(out)])
        with pytest.raises(SystemExit) as e:
            zoo.main()
        assert e.value.code == status and [(r['output_stride'], r['failed']) for r in read_rows(out)] == [
            (s, said) for s in ('8', '16', '32')
        ]
    monkeypatch.setattr(sys, 'argv', ['zoo', '--only', 'resnet19'])
    with pytest.raises(SystemExit, match="no 'resnet19' here; there are resnet18"):
        zoo.main()


def test_plan():
    names = {n for _, n, _, _ in zoo.plan()}
    assert {
        'resnet18',
        'resnet101c',
        'hrnet_w48',
        'swin_large_patch4_window7_224',
        'convnext_large',
        'convnextv2_large',
        'mobilenetv3_large_100',
        'efficientnet_b2',
    } <= names
    assert len(zoo.plan()) == len(set(zoo.plan())) and {c for _, n, _, c in zoo.plan('hrnet_w18')} == {False, True}


def test_table_on_disk(tmp_path):
    path, columns = tmp_path / 't.csv', ('a', 'b', 'c')
    record.put(path, [dict(a=1, b=2, c=3), dict(a=2, b=2, c='x, "y"')], ('a',), columns)
    record.put(path, [dict(a=1, b=5, c=6), dict(a=3, b=0, c='')], ('a',), columns)
    assert [tuple(r.values()) for r in read_rows(path)] == [('1', '5', '6'), ('2', '2', 'x, "y"'), ('3', '0', '')]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="columns \\['d'\\]"):
        record.put(path, [dict(a=4, d=1)], ('a',), columns)
    assert path.read_bytes() == before
