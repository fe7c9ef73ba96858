"""The command line: each option that is accepted has an effect, or is refused with the reason; no value of any option ends in a traceback."""

import torch
import json, os, shutil, subprocess, sys
from dataclasses import asdict, fields

import pytest
from PIL import Image
from commands import run_command as run
from idrnet_nb import cli
from idrnet_nb.cli.option_types import field_comments
from idrnet_nb.cli.set_option import setting_types
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment
from idrnet_nb.models.head import HeadConfig
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import EvalProtocol, save_model
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.training.recipes import laptop
from idrnet_nb.training import loggers
from idrnet_nb.training.config import TrainConfig
from torch.utils.data import Subset

SPACE = LABEL_SPACES['camvid']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A made-up CamVid, the same as somebody's own folders, a class list, weights of a backbone, a recipe file, a model."
    folder = tmp_path_factory.mktemp('files')
    root = write_fake_dataset('camvid', folder / 'camvid', SPACE, train=14, unseen=4, size=(48, 64))
    (folder / 'classes.txt').write_text('\n'.join(SPACE.classes) + '\nvoid, 11\n')
    for part in 'train', 'val', 'test':
        pairs = sorted((root / part).iterdir())
        text = 'image,label\n' + ''.join(f'{p},{root}/{part}annot/{p.name}\n' for p in pairs)
        (folder / f'{part}.csv').write_text(text)
    from safetensors.torch import save_file

    torch.manual_seed(99)  # other weights than those that any training begins with
    net = build_segmentor('fcn', 'tiny', 2, width=8, attention_width=8, aux_width=8).backbone.net
    save_file(net.state_dict(), folder / 'tiny.safetensors')
    (folder / 'recipe.json').write_text(json.dumps(laptop(SPACE, backbone='tiny', width=16).to_json()))
    model = build_segmentor('fcn', 'tiny', SPACE.num_classes, width=8, attention_width=8, aux_width=8)
    save_model(model, folder / 'model', SPACE, (48, 64))
    Image.new('RGB', (9, 6), 'red').save(folder / 'a.png')
    return folder


# ---- each option of train on each way to start


class Trained:
    "What a training would have been: the model, the data, the settings."

    def __init__(self):
        self.calls = []

    def __call__(self, model, data, config, device, progress, **how):
        self.device, self.progress = str(device), progress
        self.how = {k: str(v) if k == 'out' else v for k, v in how.items()}
        self.how['eval_fn'] = how['eval_fn'] and f'limit {how["eval_fn"].limit}'
        self.config, self.model = config, model
        weights = round(sum(p.detach().abs().sum().item() for p in model.parameters()), 3)
        augment = getattr(data, 'augment', None)
        rows = list(data.rows['id']) if hasattr(data, 'rows') else len(data)
        self.calls.append(
            dict(
                config=asdict(config),
                model=model.to_config(),
                weights=weights,
                device=self.device,
                progress=progress,
                how=self.how,
                rows=rows,
                size=getattr(data, 'size', None),
                on_unreadable=getattr(data, 'on_unreadable', None),
                limit=Image.MAX_IMAGE_PIXELS,
                augment=asdict(augment) if augment else None,
            )
        )


@pytest.fixture
def trained(monkeypatch):
    import idrnet_nb.experiments.model_page, idrnet_nb.training.inference, idrnet_nb.training.trainer
    from idrnet_nb.experiments.page import Page
    from idrnet_nb.training.metrics import Meter

    spy = Trained()

    def judged(model, data, *_, protocol=None, **how):
        if isinstance(data, Subset):  # one image, tried before the training
            return Meter(model.head.config.num_classes, model.head.config.ignore)
        rows = list(data.rows['id']) if hasattr(data, 'rows') else len(data)
        spy.calls[-1].update(judged=rows, protocol=asdict(protocol) if protocol else None)
        return Meter(model.head.config.num_classes, model.head.config.ignore)

    def saved(model, out, space, size, **about):
        results = [dict(row, miou=0) for row in about.get('results', ())]  # it is nan, which equals nothing
        spy.calls[-1].update(saved=str(out), results=results)

    monkeypatch.setattr(idrnet_nb.training.trainer, 'train', spy)
    monkeypatch.setattr(idrnet_nb.training.inference, 'evaluate', judged)
    monkeypatch.setattr(idrnet_nb.training.inference, 'save_model', saved)
    monkeypatch.setattr(Page, 'leave', lambda page, folder: None)
    monkeypatch.setattr(idrnet_nb.experiments.model_page, 'train_page', lambda *args: Page('', ''))
    return spy


def words_of(start, files):
    return dict(
        world=['--pictures', 24, 4],
        set=['--data', 'camvid', '--root', files / 'camvid'],
        recipe=['--recipe', files / 'recipe.json', '--data', 'camvid', '--root', files / 'camvid'],
        own=['--pairs', files / 'train.csv', '--classes', files / 'classes.txt'],
        folders=[
            '--images',
            files / 'camvid' / 'train',
            '--labels',
            files / 'camvid' / 'trainannot',
            '--classes',
            files / 'classes.txt',
        ],
    )[start]


def options(files):  # every option of train, with a value that is not its default
    return dict(
        arm='upernet+attention',
        amp='bf16',
        attention_width=24,
        backbone='resnet18',
        backbone_lr=0.25,
        batch=4,
        crop='32x48',
        data='lip',
        device='cpu',
        epochs=3,
        group_by='([0-9])([.]png)?$',
        find_lr=(),
        from_plan=files / 'no.json',
        plan=(),
        images=files / 'camvid' / 'val',
        judge=None,
        judge_every=3,
        judge_limit=1,
        patience=4,
        keep=5,
        labels=files / 'camvid' / 'valannot',
        lr=0.002,
        mini=(),
        name='yard',
        out=files / 'elsewhere',
        output_stride=8,
        pairs=files / 'val.csv',
        pictures=(16, 3),
        pretrained=(),
        quiet=(),
        recipe='laptop_fcn_camvid',
        resume=(),
        root=files / 'nowhere',
        save_every=2,
        seed=3,
        set='ema=.9',
        size=32,
        skip_broken=(),
        split='val',
        start=files / 'model',
        steps=5,
        logger='tensorboard',
        test_images=files / 'camvid' / 'val',
        test_labels=files / 'camvid' / 'valannot',
        test_pairs=files / 'val.csv',
        val_images=files / 'camvid' / 'val',
        val_labels=files / 'camvid' / 'valannot',
        val_pairs=files / 'val.csv',
        weights=files / 'tiny.safetensors',
        width=24,
        workers=1,
        classes=files / 'classes.txt',
        image_prefix='p',
        image_suffix='_i',
        label_prefix='m',
        label_suffix='_l',
        max_pixels=10**6,
        allow='in-two-parts',
    )


def names_of(command):
    p = next(a for a in cli.parser()._actions if a.choices and command in a.choices).choices[command]
    return {a.dest: a.option_strings for a in p._actions if a.dest != 'help'}


def test_the_table_knows_every_option(files):
    assert set(options(files)) == set(names_of('train'))


@pytest.mark.parametrize('start', ['world', 'set', 'recipe', 'own', 'folders'])
def test_an_option_has_an_effect_or_is_refused(start, files, trained, capsys, monkeypatch):
    import idrnet_nb.models.backbone

    real = idrnet_nb.models.backbone.timm_pyramid
    asked = []

    def pyramid(name, pretrained=False, *args, **how):  # no network: what timm would be asked for
        asked.append(pretrained)
        return real(name, False, *args, **how)

    monkeypatch.setattr(idrnet_nb.models.backbone, 'timm_pyramid', pyramid)
    monkeypatch.setattr(loggers, 'TensorBoardLogger', lambda folder: f'TensorBoard in {folder}')
    base = ['train', *words_of(start, files)]
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10**8)
    assert run(capsys, *base)[0] == 0 and run(capsys, *base)[0] == 0
    plain = trained.calls[-1]
    assert plain == trained.calls[-2]  # or every option would seem to change something
    refused = {}
    for name, value in options(files).items():
        if name == 'judge':
            value = 'test' if start == 'world' else 'none'
        words = value if isinstance(value, tuple) else (value,)
        if f'--{name.replace("_", "-")}' in base:
            continue  # how this way begins
        asked.clear()
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10**8)
        if name == 'allow' and start in ('own', 'folders'):
            continue  # see test_faults_of_own_data
        if name in ('plan', 'from_plan', 'find_lr'):
            continue  # see test_a_plan_is_shown_kept_and_given_back, test_a_learning_rate_is_proposed
        code, _, err = run(capsys, *base, f'--{name.replace("_", "-")}', *words)
        if code == 0:
            assert trained.calls[-1] != plain or any(asked), f'{name} changes nothing beside {start}'
        else:
            assert code == 2 and len([line for line in err.split('\n') if 'error' in line]) == 1, err  # beside bars
            refused[name] = err
    names = {'image_prefix', 'image_suffix', 'label_prefix', 'label_suffix'}
    judged = {'judge_every', 'judge_limit', 'patience'}  # the world has no part that chooses
    wanted = dict(
        world={
            'name',
            'root',
            'crop',
            'split',
            'mini',
            'group_by',
            'skip_broken',
            'pretrained',
            'allow',
            *names,
            *judged,
        },
        set={'name', 'pictures', 'mini', 'group_by', 'pretrained', 'allow', *names},
        recipe={'name', 'pictures', 'group_by', 'pretrained', 'allow', *names},
        own={'data', 'root', 'pictures', 'split', *names},
        folders={'data', 'root', 'pictures', 'split'},
    )[start]
    others = {
        'images',
        'labels',
        'pairs',
        'classes',
        *(f'{part}_{what}' for part in ('val', 'test') for what in ('images', 'labels', 'pairs')),
        'recipe',
        'data',
        'weights',
        'start',  # a saved model of another backbone
    }
    if start == 'folders':
        others |= names  # no file is called so: without a partner
    assert wanted <= set(refused) <= wanted | others, set(refused) ^ wanted
    for name in wanted - {'pretrained'}:
        assert f'--{name.replace("_", "-")}' in refused[name], refused[name]


@pytest.mark.parametrize('start', ['world', 'set', 'recipe', 'own', 'folders'])
def test_a_plan_is_shown_kept_and_given_back(start, files, trained, capsys, tmp_path):
    "--plan trains nothing; --from-plan trains what the same options would have; what is typed beside it counts more."
    base = ['train', *words_of(start, files), '--out', tmp_path / 'run', '--lr', 0.002, '--set', 'ema=.9']
    code, out, _ = run(capsys, *base, '--plan')
    assert code == 0 and not trained.calls and 'from the beginning' in out
    assert run(capsys, *base)[0] == 0
    plan = tmp_path / 'run' / 'plan.json'
    assert run(capsys, 'train', '--from-plan', plan)[0] == 0
    assert trained.calls[1]['config'] == trained.calls[0]['config'] and trained.calls[0]['config']['lr'] == 0.002
    del trained.calls[0]['results'], trained.calls[1]['results']
    assert trained.calls[1] == trained.calls[0]
    assert run(capsys, 'train', '--from-plan', plan, '--lr', 0.5)[0] == 0
    assert trained.calls[2]['config']['lr'] == 0.5 and trained.calls[2]['rows'] == trained.calls[0]['rows']
    edited = json.loads(plan.read_text())
    edited['options']['--sead'] = ['3']
    plan.write_text(json.dumps(edited))
    code, _, err = run(capsys, 'train', '--from-plan', plan)
    assert code == 2 and '--sead' in err


def test_a_learning_rate_is_proposed(files, trained, capsys, tmp_path):
    "A figure and a proposal; nothing is trained."
    words = ['--pictures', 24, 4, '--size', 32, '--batch', 4, '--device', 'cpu', '--quiet']
    code, out, _ = run(capsys, 'train', *words, '--find-lr', '--out', tmp_path / 'lr')
    assert code == 0 and not trained.calls and 'find_lr.png' in out
    assert sorted(p.name for p in (tmp_path / 'lr').iterdir()) == ['find_lr.png', 'plan.json']
    assert Image.open(tmp_path / 'lr' / 'find_lr.png').size[0] > 200


def test_faults_of_own_data(files, trained, capsys, tmp_path):
    "Masks of 0 and 255 with a list that ignores 255 unsaid; the same images in both parts: refused before step 0, with the line to write."
    import numpy as np

    rng = np.random.default_rng(0)
    for part in 'seen', 'unseen':
        for kind in 'images', 'masks':
            (tmp_path / part / kind).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(
                tmp_path / part / 'images' / f'{i}.png'
            )
            Image.fromarray((255 * (rng.random((24, 32)) < 0.5)).astype(np.uint8)).save(
                tmp_path / part / 'masks' / f'{i}.png'
            )
    classes = tmp_path / 'classes.txt'
    words = [
        'train',
        '--images',
        tmp_path / 'seen' / 'images',
        '--labels',
        tmp_path / 'seen' / 'masks',
        '--classes',
        classes,
        '--backbone',
        'tiny',
    ]
    unseen = ['--test-images', tmp_path / 'unseen' / 'images', '--test-labels', tmp_path / 'unseen' / 'masks']
    classes.write_text('background\nobject\n')
    code, _, err = run(capsys, *words, *unseen)
    assert code == 2 and 'object, 255' in err and 'class without a pixel' in err and not trained.calls
    assert run(capsys, 'check-data', *words[1:7], '--quiet')[0] == 1
    classes.write_text('background, 0\nobject, 255\n')
    assert run(capsys, 'check-data', *words[1:7], '--quiet')[0] == 0
    code, out, _ = run(capsys, *words, *unseen)
    assert code == 0 and trained.calls[-1]['model']['head']['num_classes'] == 2 and 'a flip swaps no classes' in out
    again = ['--test-images', tmp_path / 'seen' / 'images', '--test-labels', tmp_path / 'seen' / 'masks']
    code, _, err = run(capsys, *words, *again)
    assert code == 2 and 'in two parts' in err and '--allow in-two-parts' in err
    assert run(capsys, *words, *again, '--allow', 'in-two-parts')[0] == 0
    classes.write_text('object, 255\nvoid, 0\n')
    code, _, err = run(capsys, *words, *unseen)
    assert code == 2 and 'background, 0' in err
    for part in 'images', 'masks':
        for p in (tmp_path / 'unseen' / part).iterdir():
            p.rename(p.with_stem(f'{p.stem}_{part[:-1]}'))
    classes.write_text('background, 0\nobject, 255\n')
    code, _, err = run(
        capsys,
        'check-data',
        '--images',
        tmp_path / 'unseen' / 'images',
        '--labels',
        tmp_path / 'unseen' / 'masks',
        '--classes',
        classes,
        '--quiet',
    )
    assert '--image-suffix=_image' in err + _ and '--label-suffix=_mask' in err + _
    assert (
        run(
            capsys,
            'check-data',
            '--images',
            tmp_path / 'unseen' / 'images',
            '--labels',
            tmp_path / 'unseen' / 'masks',
            '--classes',
            classes,
            '--quiet',
            '--image-suffix=_image',
            '--label-suffix=_mask',
        )[0]
        == 0
    )


def test_an_arm_is_what_is_built_and_what_the_card_says(files, trained, capsys):
    base = ['train', '--pairs', files / 'train.csv', '--classes', files / 'classes.txt', '--backbone', 'tiny']
    built = {}
    for words in (
        ['--arm', 'fcn'],
        ['--arm', 'fcn+idr'],
        ['--arm', 'fcn+attention'],
        ['--set', 'head.idr=false'],
        ['--arm', 'upernet+frozen'],
        ['--arm', 'fcn+wide'],
        [],
    ):
        assert run(capsys, *base, *words)[0] == 0
        built[' '.join(words)] = (trained.calls[-1]['model']['head'], trained.calls[-1]['results'][0]['arm'])
    assert {k: arm for k, (_, arm) in built.items()} == {
        '--arm fcn': 'fcn',
        '--arm fcn+idr': 'fcn+idr',
        '--arm fcn+attention': 'fcn+attention',
        '--set head.idr=false': 'fcn',
        '--arm upernet+frozen': 'upernet+frozen',
        '--arm fcn+wide': 'fcn+wide',
        '': 'fcn+idr',
    }
    assert built['--arm fcn'][0] == built['--set head.idr=false'][0] and built['--arm fcn'][0]['idr'] is False
    assert built['--arm fcn+idr'][0] == built[''][0] and built[''][0]['idr'] is True
    assert built['--arm fcn+wide'][0]['width'] > built['--arm fcn'][0]['width']


def test_what_a_recipe_file_says_is_not_lost(files, trained, capsys):
    "Its seed, amp, workers and length were overwritten by the defaults of options that nobody had typed."
    recipe = json.loads((files / 'recipe.json').read_text())
    recipe['train'] |= dict(seed=5, amp='bf16', workers=1, lr=0.02)
    path = files / 'mine.json'
    path.write_text(json.dumps(recipe))
    base = ['train', '--recipe', path, '--data', 'camvid', '--root', files / 'camvid']
    assert run(capsys, *base)[0] == 0
    config = trained.calls[-1]['config']
    assert {k: config[k] for k in ('seed', 'amp', 'workers', 'lr', 'steps')} == dict(
        seed=5, amp='bf16', workers=1, lr=0.02, steps=20
    )
    assert trained.calls[-1]['augment']['seed'] == 5
    for words, wanted in (
        (['--seed', 7], dict(seed=7)),
        (['--set', 'seed=8'], dict(seed=8)),
        (['--set', 'amp=none', 'workers=0'], dict(amp=None, workers=0)),
        (['--steps', 9], dict(steps=9)),
        (['--set', 'steps=9'], dict(steps=9)),
        (['--epochs', 2], dict(steps=2)),
        (['--set', 'epochs=3'], dict(steps=3)),
    ):
        assert run(capsys, *base, *words)[0] == 0
        assert {k: trained.calls[-1]['config'][k] for k in wanted} == wanted
    path.write_text(json.dumps({**recipe, 'train': {**recipe['train'], 'steps': 77}}))
    code, _, err = run(capsys, *base)
    assert code == 2 and 'train.steps=77' in err and 'epochs' in err  # two lengths in one file
    path.write_text(json.dumps({**recipe, 'epochs': None, 'steps': 77}))
    assert run(capsys, *base)[0] == 0 and trained.calls[-1]['config']['steps'] == 77


@pytest.mark.parametrize(
    'words',
    [
        ('--lr', '.1', '--set', 'lr=.2'),
        ('--steps', '3', '--epochs', '1'),
        ('--steps', '3', '--set', 'epochs=1'),
        ('--seed', '1', '--set', 'seed=2'),
        ('--set', 'lr=.1', 'lr=.2'),
        ('--lr', '.1', '--lr', '.2'),
        ('--set', 'lr=.1', '--set', 'ema=.9'),
        ('--quiet', '--quiet'),
    ],
    ids=' '.join,
)
def test_the_same_twice_is_refused(words, capsys, trained):
    code, _, err = run(capsys, 'train', *words)
    assert code == 2 and ('twice' in err or 'both' in err) and not trained.calls


def test_options_that_exclude_each_other(files, trained, capsys):
    own = ['--pairs', files / 'train.csv', '--classes', files / 'classes.txt']
    for words, said in (
        (['--data', 'camvid', *own], '--data'),
        (['--test-images', files], '--test-images'),
        ([*own, '--test-images', files], 'with --test-labels'),
        ([*own, '--test-pairs', files / 'val.csv', '--split', '70/30'], '--split'),
        ([*own, '--split', 'val'], 'give shares'),
        (['--pretrained', '--weights', files / 'tiny.safetensors'], 'both say where'),
        (['--images', files], 'what to train on'),
        (['--recipe', 'laptop_fcn_camvid'], 'needs --root'),
        (['--recipe', files / 'none.json'], 'no such file'),
        (['--recipe', 'laptop_fcn_canvid'], 'laptop_fcn_camvid'),
        (['--mini'], 'small'),
    ):
        code, _, err = run(capsys, 'train', *words)
        assert code == 2 and said in err and not trained.calls, err
    assert (
        run(capsys, 'train', *own, '--test-pairs', files / 'val.csv')[0] == 0 and len(trained.calls[-1]['judged']) == 4
    )


def test_a_class_list_called_like_a_published_set(files, trained, capsys):
    "Neither sizes nor mirrored pairs come from the name of a file."
    for name in 'camvid', 'lip':
        (files / f'{name}.txt').write_text('lawn\nshed\npath\n' + 'void, 11\n' + ''.join(f'c{i}, {i}\n' for i in ()))
        (files / f'{name}.txt').write_text(''.join(f'c{i}, {i}\n' for i in range(11)) + 'void, 11\n')
        assert run(capsys, 'train', '--pairs', files / 'train.csv', '--classes', files / f'{name}.txt')[0] == 0
        call = trained.calls[-1]
        assert (
            tuple(call['augment']['bounds']) == (240, 320)
            and not call['augment']['flip_pairs']
            and not call['protocol']['flip_pairs']
        )


# ---- values

WORDS = [
    '0',
    '-1',
    'nan',
    'inf',
    '-inf',
    '',
    ' ',
    'x',
    '1e400',
    '99999999999999999999',
    '[',
    '(1,',
    '1,2,3',
    'None',
    'True',
    '0.5',
    '{}',
    '\u0663',
]


def fields_of(part):
    return [
        f.name for f in fields(dict(train=TrainConfig, head=HeadConfig, augment=Augment, protocol=EvalProtocol)[part])
    ]


@pytest.mark.parametrize('start', ['set', 'recipe'])
@pytest.mark.parametrize('part', ['train', 'head', 'augment', 'protocol', 'backbone'])
def test_every_setting_with_every_odd_value(part, start, files, trained, capsys):
    "Each is obeyed or refused in one line."
    names = (
        fields_of(part)
        if part != 'backbone'
        else [*setting_types('backbone'), 'name', 'weights', 'pretrained', 'checkpoint_path']
    )
    for name in names:
        for value in WORDS:
            if (
                part == 'head'
                and name in ('width', 'attention_width', 'aux_width', 'fpn_width', 'num_classes', 'deletions')
                and value.startswith('999')
            ):
                continue
            setting = f'{name}={value}' if part == 'train' else f'{part}.{name}={value}'
            code, _, err = run(capsys, 'train', *words_of(start, files), '--set', setting)
            assert code in (0, 2) and (code == 0 or len(err.strip().splitlines()) == 1), (setting, err)
            if value in ('nan', 'inf', '1e400', '[', '{}') and name not in ('name', 'weights'):
                assert code == 2, setting


@pytest.mark.parametrize(
    'text,wanted',
    [
        ('False', False),
        ('no', False),
        ('off', False),
        ('0', False),
        ('true', True),
        ('Yes', True),
        ('ON', True),
        ('1', True),
    ],
)
def test_yes_and_no(text, wanted, trained, capsys):
    assert run(capsys, 'train', '--pictures', 20, 2, '--set', f'frozen={text}')[0] == 0
    assert trained.calls[-1]['config']['frozen'] is wanted


@pytest.mark.parametrize(
    'setting,wanted',
    [
        ('ohem=.7', 0.7),
        ('lr=1.', 1.0),
        ('weight_decay=1e-3', 0.001),
        ('class_weights=1,2,3,4,5,6,7,8,9,10,11,12', tuple(range(1, 13))),
        ('warmup=1e1', 10),
        ('clip=none', None),
        ('loss=ce+dice', 'ce+dice'),
    ],
)
def test_numbers_as_people_write_them(setting, wanted, trained, capsys):
    assert run(capsys, 'train', '--pictures', 20, 2, '--set', setting)[0] == 0
    assert trained.calls[-1]['config'][setting.partition('=')[0]] == wanted


def test_the_seed_beside_another_setting(trained, capsys):
    "With --set seed=8 every other setting of TrainConfig was said not to exist."
    assert run(capsys, 'train', '--pictures', 20, 2, '--set', 'seed=8', 'ema=.9')[0] == 0
    assert (trained.calls[-1]['config']['seed'], trained.calls[-1]['config']['ema']) == (8, 0.9)


def test_help_comes_from_the_configs(capsys):
    code, out, _ = run(capsys, 'train', '--help')
    assert code == 0 and field_comments(TrainConfig)['backbone_lr'] in ' '.join(out.split())
    assert all(f'\n  {name}: ' in out for name in fields_of('train'))  # what --set takes


@pytest.mark.parametrize(
    'setting',
    [
        'frozen=maybe',
        'lr=-1',
        'power=-1',
        'log_every=0',
        'class_weights=0,0',
        'lr=nan',
        'ema=2',
        'loss=cross',
        'speed=3',
        'compile=quick',
        'epochs=-1',
        'steps=0',
        'head.idr=perhaps',
        'head.ignore=3',
        'lr',
        'head.depth=3',
        'wheels.x=1',
        'augment.flip=1',
        'backbone.weights=x',
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_built(setting, trained, capsys):
    code, _, err = run(capsys, 'train', '--pictures', 20, 2, '--set', setting)
    assert code == 2 and not trained.calls and setting.partition('=')[0].split('.')[-1] in err


@pytest.mark.parametrize(
    'setting',
    [
        'augment.flip_pairs=(0,1),(1,2)',
        'augment.crop=360',
        'augment.scale=2,1',
        'protocol.flip_pairs=(0,1),(1,2)',
        'protocol.resize=360',
        'augment.bounds=0x4',
    ],
)
def test_settings_of_images_that_cannot_be(setting, files, trained, capsys):
    for start in 'set', 'recipe':
        code, _, err = run(capsys, 'train', *words_of(start, files), '--set', setting)
        assert code == 2 and not trained.calls and setting.partition('=')[0].split('.')[-1] in err


def commands(files):
    "Each command in a form that works, without the options that are tried; what is slow is taken out by `quick`."
    return {
        'train': ['--pictures', 20, 2],
        'compare': ['--pictures', 20, 2],
        'bench': [],
        'speed': [],
        'recipes': [],
        'convert': ['--list'],
        'check-data': ['--pairs', files / 'val.csv', '--classes', files / 'classes.txt', '--quiet'],
        'evaluate': ['--model', files / 'model', '--pairs', files / 'val.csv', '--quiet', '--device', 'cpu'],
        'predict': ['--model', files / 'model', '--device', 'cpu', '--out', files / 'seen', files / 'a.png'],
    }


@pytest.fixture(autouse=True)
def limit_of_pixels(monkeypatch):
    "--max-pixels holds for the process: each test begins without it."
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def quick(monkeypatch, trained):
    import idrnet_nb.experiments.benchmark, idrnet_nb.experiments.compare, idrnet_nb.experiments.speed
    from idrnet_nb.common.device import pick_device

    checked = lambda device: pick_device(device)  # all that a run does with it at first
    monkeypatch.setattr(
        idrnet_nb.experiments.compare,
        'compare',
        lambda task, arms, seeds, out, config, device, jobs, *rest, **args: (
            checked(device),
            [idrnet_nb.experiments.compare.parse_variant(a) for a in arms],
        ),
    )
    monkeypatch.setattr(idrnet_nb.experiments.benchmark, 'run_missing', lambda *args, **how: [])
    monkeypatch.setattr(idrnet_nb.experiments.benchmark, 'report', lambda *args: {})
    monkeypatch.setattr(
        idrnet_nb.experiments.speed, 'speed', lambda file, quick, device, progress, minutes: checked(device)
    )


@pytest.mark.parametrize(
    'command', ['train', 'compare', 'bench', 'speed', 'recipes', 'convert', 'check-data', 'evaluate', 'predict']
)
def test_every_option_with_every_odd_value(command, files, capsys, tmp_path, monkeypatch, request):
    "Exit code 0, 1 or 2, one error (argparse adds its usage, faults of data are a line each), never a traceback."
    monkeypatch.chdir(tmp_path)
    if command not in ('check-data', 'evaluate', 'predict'):
        request.getfixturevalue('quick')
    base = commands(files)[command]
    for name, flags in names_of(command).items():
        if not flags or flags[-1] in map(str, base) or name == 'version':
            continue
        for value in WORDS:
            words = (
                ['--quiet']
                if flags[-1] == '--quiet'
                else [flags[0], *([value, value] if name == 'pictures' else [value])]
            )
            if value.startswith('999') and name in ('size', 'pictures', 'width', 'attention_width'):
                continue  # refused or not, memory tells
            code, _, err = run(capsys, command, *base, *words)
            assert code in (0, 1, 2), (words, code)
            if code != 2:
                continue
            said = [
                line
                for line in err.splitlines()
                if line.startswith((f'idrnet {command}: error: ', 'idrnet: error: unrecognized'))
            ]
            assert len(said) == 1 and 'Traceback' not in err, (words, err)  # faults of data follow it, one a line


@pytest.mark.parametrize(
    'words',
    [
        ('--lr', 'nan'),
        ('--lr', '-1'),
        ('--batch', '0'),
        ('--steps', '0'),
        ('--epochs', '-1'),
        ('--seed', '-1'),
        ('--seed', '4294967296'),
        ('--keep', '0'),
        ('--save-every', '0'),
        ('--workers', '-1'),
        ('--split', '70'),
        ('--split', '70/0'),
        ('--width', '0'),
        ('--pictures', '0', '1'),
        ('--size', '0'),
        ('--backbone-lr', 'inf'),
    ],
    ids=' '.join,
)
def test_numbers_out_of_range(words, trained, capsys):
    code, _, err = run(capsys, 'train', *words)
    assert code == 2 and words[0] in err and not trained.calls


# ---- what is written


def test_a_prediction_is_not_written_over_an_image(files, capsys, tmp_path):
    (tmp_path / 'photos').mkdir()
    photo = tmp_path / 'photos' / 'p00.png'
    Image.new('RGB', (9, 6), 'red').save(photo)
    before = photo.read_bytes()
    call = ['predict', '--model', files / 'model', '--device', 'cpu']
    for words in (
        [photo, '--server', '--out', tmp_path / 'photos'],
        [tmp_path / 'photos' / '..' / 'photos' / 'p00.png', '--server', '--out', tmp_path / 'photos'],
    ):
        code, _, err = run(capsys, *call, *words)
        assert code == 2 and 'written over the image' in err and photo.read_bytes() == before
    os.symlink(tmp_path / 'photos', tmp_path / 'link')
    assert run(capsys, *call, photo, '--server', '--out', tmp_path / 'link')[0] == 2
    (tmp_path / 'out').mkdir()
    os.link(photo, tmp_path / 'out' / 'p00.png')  # another name of the same file
    assert run(capsys, *call, photo, '--server', '--out', tmp_path / 'out')[0] == 2 and photo.read_bytes() == before
    shutil.copy(photo, tmp_path / 'photos' / 'p00_index.png')
    assert run(capsys, *call, photo, tmp_path / 'photos' / 'p00_index.png', '--out', tmp_path / 'photos')[0] == 2
    assert run(capsys, *call, photo, '--out', tmp_path / 'seen')[0] == 0


def test_predict_goes_on_after_a_broken_image(files, capsys, tmp_path):
    (tmp_path / 'broken.jpg').write_text('no image')
    Image.new('RGB', (9, 6), 'red').save(tmp_path / 'whole.png')
    code, out, err = run(
        capsys,
        'predict',
        '--model',
        files / 'model',
        '--device',
        'cpu',
        '--out',
        tmp_path / 'seen',
        tmp_path / 'broken.jpg',
        tmp_path / 'whole.png',
    )
    assert (
        code == 2
        and 'broken.jpg' in err
        and '1 of 2 images' in err
        and (tmp_path / 'seen' / 'whole_index.png').is_file()
    )


def test_names_that_overwrite_each_other(files, capsys, tmp_path):
    for name in 'a.png', 'A.PNG', 'b.png':
        Image.new('RGB', (9, 6)).save(tmp_path / name)
    code, _, err = run(
        capsys, 'predict', '--model', files / 'model', '--device', 'cpu', tmp_path / 'a.png', tmp_path / 'A.PNG'
    )
    assert code == 2 and 'same name' in err
    (tmp_path / 'empty').mkdir()
    code, _, err = run(capsys, 'predict', '--model', files / 'model', '--device', 'cpu', tmp_path / 'empty')
    assert code == 2 and 'a folder without images' in err


def test_a_report_is_not_written_over_what_is_read(files, capsys, tmp_path):
    shutil.copy(files / 'classes.txt', tmp_path / 'classes.txt')
    before = (tmp_path / 'classes.txt').read_bytes()
    check = ['check-data', '--pairs', files / 'val.csv', '--classes', tmp_path / 'classes.txt', '--quiet', '--json']
    code, _, err = run(capsys, *check, tmp_path / 'classes.txt')
    assert code == 2 and 'classes.txt' in err and (tmp_path / 'classes.txt').read_bytes() == before
    (tmp_path / 'notes.txt').write_text('mine')
    assert run(capsys, *check, tmp_path / 'notes.txt')[0] == 2 and (tmp_path / 'notes.txt').read_text() == 'mine'
    assert run(capsys, *check, tmp_path / 'r.json')[0] in (0, 1) and run(capsys, *check, tmp_path / 'r.json')[0] in (
        0,
        1,
    )  # its own report may go
    config = (files / 'model' / 'config.json').read_bytes()
    code, _, err = run(
        capsys,
        'evaluate',
        '--model',
        files / 'model',
        '--pairs',
        files / 'val.csv',
        '--device',
        'cpu',
        '--json',
        files / 'model' / 'config.json',
    )
    assert code == 2 and (files / 'model' / 'config.json').read_bytes() == config


def test_a_terminal_in_ascii(files, tmp_path):
    "cp437 and ascii know no × and no –: the line is printed all the same."
    for encoding in 'ascii', 'cp437':
        done = subprocess.run(
            [
                sys.executable,
                '-c',
                'import sys; from idrnet_nb.cli import main; sys.exit(main())',
                'check-data',
                '--pairs',
                str(files / 'val.csv'),
                '--classes',
                str(files / 'classes.txt'),
                '--quiet',
            ],
            capture_output=True,
            env={**os.environ, 'PYTHONIOENCODING': encoding},
        )
        assert done.returncode in (0, 1) and b'Traceback' not in done.stderr and b'pairs' in done.stdout, done.stderr


def test_jobs_on_data_that_no_other_process_can_make(tmp_path):
    from idrnet_nb.experiments.compare import compare
    from idrnet_nb.experiments.tasks import Task
    from idrnet_nb.method.toy_world import TOY_WORLD, ToyWorld

    task = Task('mine', TOY_WORLD, list(ToyWorld(4, 32)), list(ToyWorld(2, 32)))
    with pytest.raises(ValueError, match="jobs=2, but task 'mine'.*jobs=1"):
        compare(task, ('fcn',), (0, 1), tmp_path, TrainConfig(steps=1, batch_size=2), 'cpu', 2, False, width=8)


def test_an_error_that_nobody_foresaw(capsys, monkeypatch):
    import idrnet_nb.training.recipes

    monkeypatch.setattr(idrnet_nb.training.recipes, 'RECIPES', None)
    assert cli.main(['recipes', 'x']) == 2
    err = capsys.readouterr().err
    assert 'TypeError' in err and 'IDRNET_TRACEBACK=1' in err and err.count('\n') == 1
    monkeypatch.setenv('IDRNET_TRACEBACK', '1')
    with pytest.raises(TypeError):
        cli.main(['recipes', 'x'])


# ---- what a file of a model holds


def leaves(settings, at=()):
    "Where each value of nested settings stands."
    if isinstance(settings, dict) and settings:
        return [a for k, v in settings.items() for a in leaves(v, (*at, k))]
    return [at]


def changed(settings, at, value):
    "The same settings with another value in one place."
    new = json.loads(json.dumps(settings))
    inner = new
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return new


@pytest.mark.parametrize('value', [None, 'x', -1, [], {}, 1e30, True], ids=repr)
def test_config_json_with_an_odd_value(value, files, capsys, tmp_path):
    "Each field of config.json of a wrong type, through the real command: a prediction, or one line that names the file or the field."
    from safetensors.torch import load_file, save_file

    folder = tmp_path / 'model'
    shutil.copytree(files / 'model', folder)
    save_file(load_file(folder / 'model.safetensors'), folder / 'model.safetensors')  # no settings inside
    config = json.loads((folder / 'config.json').read_text())
    for at in leaves(config):
        if at[:1] == ('space',) and at[1:2] == ('raw_to_train',) and len(at) > 2 and at[2] != '11':
            continue  # one of them is enough
        (folder / 'config.json').write_text(json.dumps(changed(config, at, value)))
        code, _, err = run(
            capsys, 'predict', '--model', folder, '--device', 'cpu', '--out', tmp_path / 'seen', files / 'a.png'
        )
        assert code in (0, 2) and (code == 0 or len(err.strip().splitlines()) == 1), (at, err)
        assert code == 0 or any(word in err for word in ('config.json', 'model.safetensors', at[-1], at[0])), (at, err)
