"""What the package writes at its present format: names, shapes and dtypes of all tensors, names of all
settings; and a small model, a checkpoint and a plugged model with the logits that they give.

    python tools/record_names.py            write it to tests/recorded/format1, in the names of format 1
    python tools/record_names.py --check    say what differs from what was written; exit 1 if anything

A tensor may get another name, but the weights that people have on their disks keep theirs: with other
names FORMAT grows, and what was written at an old format is read by a map of names. So a record of
the same format that says something else is not written over (--force does it, where old files can be
read nevertheless). Samples that are there stay: they are what an old version has written."""

import argparse, json, shutil, sys, tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from idrnet_nb.models import hub as share
from idrnet_nb.training.checkpoint import load_checkpoint
from idrnet_nb.common.checks import IGNORE
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.common.device import seed_everything
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import EvalProtocol, load_model, save_model
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.schedule import param_groups
from idrnet_nb.models.plugin import add_idr
from idrnet_nb.models.plugin_files import load_plugged, save_plugged
from idrnet_nb.training.trainer import train

DATA = Path(__file__).resolve().parents[1] / 'tests' / 'recorded'
KINDS = dict(plain=False, attention='attention', idr=True)  # as `build_segmentor` takes them
BACKBONES = 'tiny', 'resnet18'
FIRST = 'step-00000001.safetensors'  # checkpoint of the sample training

HEAD_NAMES = (  # the beginning of a name inside of a head: today, at format 1
    ('idr.attention.', 'refiner.refiner.'),
    ('idr.deletion_count', 'refiner.count'),
    ('idr.', 'refiner.'),
    ('attention.', 'refiner.'),
    ('bottleneck.', 'squeeze.'),
    ('context_attention.', 'attend.'),
    ('context.', 'place.'),
    ('decoder.', 'fpn.'),
    ('coarse_classifier.hidden.', 'coarse.conv.'),
    ('coarse_classifier.logits.', 'coarse.score.'),
    ('aux_classifier.hidden.', 'aux.conv.'),
    ('aux_classifier.logits.', 'aux.score.'),
    ('classifier.hidden.', 'final.conv.'),
    ('classifier.logits.', 'final.score.'),
)


def to_recorded(name):
    """The name that a tensor had at format 1, from the name that it has now, in a model ('head.…',
    'backbone.…'): `format1.current_name` the other way round. So the record of format 1 stays as it is."""
    inside = name.removeprefix('head.')
    if inside == name:
        return name
    for today, then in HEAD_NAMES:
        if inside.startswith(today):
            return 'head.' + then + inside.removeprefix(today)
    return name


PLUGIN_NAMES = (  # the beginning of a name inside of IDR in somebody else's model: today, at format 1
    ('idr.attention.', 'context.refiner.'),
    ('idr.deletion_count', 'context.count'),
    ('idr.', 'context.'),
    ('seam.', 'coarse.'),
    ('bottleneck.', 'squeeze.'),
    ('final.hidden.', 'final.conv.'),
    ('final.logits.', 'final.score.'),
)


def to_recorded_plugin(name):
    "The name that a tensor had at format 1 inside of IDR in somebody else's model, from the name that it has now."
    for today, then in PLUGIN_NAMES:
        if name.startswith(today):
            return then + name.removeprefix(today)
    return name


# --- samples: what somebody may have on disk

CONFIG = TrainConfig(steps=2, batch_size=2, lr=1e-3, warmup=0, ema=0.5)
SPACE = LabelSpace('three', ('sky', 'tree', 'road'), ((0, 0, 255), (0, 160, 0), (90, 90, 90)))


def sample_model(framework):
    seed_everything(0)
    return build_segmentor(
        framework, 'tiny', 3, width=4, attention_width=2, aux_width=2, dropout=0.0, backbone_args=dict(width=4)
    )


def sample_host():
    "Somebody else's model."
    seed_everything(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def sample_pairs():
    "Four images with their labels; some pixels have none."
    seed_everything(2)
    label = torch.randint(0, 4, (4, 4, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = (60 * label[:, None] + torch.randint(0, 60, (4, 3, 16, 20))).to(torch.uint8)
    return list(zip(images, label.masked_fill(label == 3, IGNORE)))


@torch.no_grad()
def answer(model, images):
    out = model.eval()(images)
    return out if isinstance(out, torch.Tensor) else out.logits


def model_of(folder):
    "The sample of a saved model, read."
    return load_model(folder / 'model', SPACE)[0]


def checkpointed(folder):
    "The sample of a checkpoint, read into a new model."
    model = sample_model('fcn')
    model.load_state_dict(load_checkpoint(folder / 'training' / 'checkpoints')['state']['model'])
    return model


def resumed(folder, out):
    "The sample of a training goes on to its end in `out`: the model, losses of the steps done now."
    shutil.copytree(folder / 'training', out, dirs_exist_ok=True)
    model = sample_model('fcn')
    records = train(model, sample_pairs(), CONFIG, 'cpu', False, out=out, resume=True)
    return model, torch.tensor([r['loss'] for r in records])


def plugged(folder):
    "The sample of somebody else's model with IDR, read."
    return load_plugged(sample_host(), folder / 'plugged.safetensors')


def write_samples(folder):
    "Train, save as a user would, and keep what the models say of an image, and the last loss."
    pairs, model, trained = sample_pairs(), sample_model('upernet'), sample_model('fcn')
    train(model, pairs, CONFIG, 'cpu', False)
    results = [dict(data='made up', miou=50.0)]
    save_model(model, folder / 'model', SPACE, (16, 20), protocol=asdict(EvalProtocol()), results=results)
    with tempfile.TemporaryDirectory() as tmp:  # a training of two steps, of which the checkpoint of the first is kept
        records = train(trained, pairs, CONFIG, 'cpu', False, out=tmp, save_every=1)
        (folder / 'training' / 'checkpoints').mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(tmp) / 'checkpoints' / FIRST, folder / 'training' / 'checkpoints')
    images = pairs[0][0][None]
    host = add_idr(sample_host(), at='3', width=4, dim=2)
    host.train()(images.float())
    save_plugged(host, folder / 'plugged.safetensors')
    said = dict(
        images=images,
        loss=torch.tensor([records[-1]['loss']]),
        model=answer(model, images),
        checkpoint=answer(checkpointed(folder), images),
        trained=answer(trained, images),
        plugged=answer(host, images.float()),
    )
    save_file(said, folder / 'outputs.safetensors')


def sample_faults(folder):
    "What the samples in `folder` do not say any more; each is read as a user would read it."
    said, out = load_file(folder / 'outputs.safetensors'), []
    images = said['images']
    with tempfile.TemporaryDirectory() as tmp:
        gone_on, loss = resumed(folder, Path(tmp) / 'training')

    def compare(what, got, want, tolerance=1e-5):
        if not torch.allclose(got, want, rtol=tolerance, atol=tolerance):
            out.append(f'{what}: off by {(got - want).abs().max():.1e}')

    compare('logits of the saved model', answer(model_of(folder), images), said['model'])
    compare('logits of the checkpoint', answer(checkpointed(folder), images), said['checkpoint'])
    compare('logits of the plugged model', answer(plugged(folder), images.float()), said['plugged'])
    compare('loss of the step after the checkpoint', loss, said['loss'], 1e-4)
    compare('logits at the end of the resumed training', answer(gone_on, images), said['trained'], 1e-3)
    return out


# --- names of today


def spec(tensor):
    return f'{str(tensor.dtype)[6:]} {"x".join(map(str, tensor.shape)) or "scalar"}'


def names_of(tensors):
    return {to_recorded(name): spec(t) for name, t in tensors.items()}


def model_names():
    "Model -> its tensors: each framework; plain, with attention, with IDR; on each backbone."
    out = {}
    for framework in FRAMEWORKS:
        for kind, idr in KINDS.items():
            for backbone in BACKBONES:
                model = build_segmentor(framework, backbone, 3, idr, width=8, attention_width=4, aux_width=6)
                out[f'{framework} {kind} {backbone}'] = names_of(model.state_dict())
    return out


def smp():
    from segmentation_models_pytorch import Unet

    return Unet('resnet18', encoder_weights=None, classes=3, encoder_depth=3, decoder_channels=(16, 8, 8))


def torchvision():
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    class Backbone(nn.Conv2d):
        def forward(self, x):
            return dict(out=super().forward(x))

    return FCN(Backbone(3, 16, 3, 4, 1), FCNHead(16, 3))


def transformers():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=3,
            depths=[1] * 4,
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        )
    )


LIBRARIES = dict(
    smp=(smp, 'segmentation_head.0'),
    torchvision=(torchvision, 'classifier.4'),
    transformers=(transformers, 'decode_head.classifier'),
)  # a model of each, and where IDR goes


def plugged_names(library):
    "The tensors of IDR in a model of a library, by their names in IDR. ImportError if it is not installed."
    build, at = LIBRARIES[library]
    model, inside = build(), at + '.'
    outside = [n for n in model.state_dict() if not n.startswith(inside)]
    state = add_idr(model).state_dict()
    if [n for n in state if not n.startswith(inside)] != outside:
        raise AssertionError(f'{library}: names outside of {at} have changed')
    return {to_recorded_plugin(n.removeprefix(inside)): spec(t) for n, t in state.items() if n.startswith(inside)}


def checkpoint_names(file):
    "Tensors of a checkpoint; weights are those under 'model/' and 'ema/module.'."
    out = {}
    for name, tensor in load_file(file).items():
        place = next((p for p in ('model/', 'ema/module.') if name.startswith(p)), '')
        out[place + to_recorded(name.removeprefix(place))] = spec(tensor)
    return dict(sorted(out.items()))


def optimised(model):
    "Names of a model's parameters, in the order in which a checkpoint's optimiser numbers them."
    names = {id(p): n for n, p in model.named_parameters()}
    return [to_recorded(names[id(p)]) for group in param_groups(model, CONFIG) for p in group['params']]


def settings_of(config, at=''):
    "Dotted names of all settings."
    if not isinstance(config, dict):
        return [at[1:]]
    return [name for key, value in config.items() for name in settings_of(value, f'{at}.{key}')]


def header(file, key):
    with safe_open(file, 'pt') as f:
        return json.loads(f.metadata()[key])


def record():
    "All that is recorded, of the package as it is; libraries that are not installed are left out."
    libraries = {}
    for library in LIBRARIES:
        try:
            libraries[library] = plugged_names(library)
        except ImportError:
            pass
    with tempfile.TemporaryDirectory() as tmp:
        write_samples(folder := Path(tmp))
        file = folder / 'training' / 'checkpoints' / FIRST
        settings = {
            'config.json': settings_of(json.loads((folder / 'model' / share.CONFIG).read_text())),
            'checkpoint': settings_of({k: v for k, v in header(file, 'checkpoint').items() if k != 'tree'}),
            'plugged': settings_of(header(folder / 'plugged.safetensors', 'idrnet_nb.plug')),
        }
        return dict(
            format=share.FORMAT,
            models=model_names(),
            plugged=libraries,
            checkpoint=checkpoint_names(file),
            optimised=optimised(sample_model('fcn')),
            settings=settings,
        )


def differences(was, now):
    """What two records do not have in common, in words.
    A further setting is no difference: files that lack it are read by its default."""
    out = []
    for name in [*was['models'], *(n for n in now['models'] if n not in was['models'])]:
        out += changed(f'model {name!r}', was['models'].get(name, {}), now['models'].get(name, {}))
    for library in was['plugged'].keys() & now['plugged'].keys():
        out += changed(f'IDR in a model of {library}', was['plugged'][library], now['plugged'][library])
    out += changed('checkpoint', was['checkpoint'], now['checkpoint'])
    if was['optimised'] != now['optimised']:
        out.append('the optimiser of a checkpoint numbers the parameters in another order')
    for file, names in was['settings'].items():
        out += [f'{file}: setting {n!r} is gone' for n in names if n not in now['settings'][file]]
    return out


def changed(what, was, now):
    "Tensors that are gone, new, or of another shape or dtype."
    names = [*was, *(n for n in now if n not in was)]
    different = [n for n in names if was.get(n) != now.get(n)]
    return [f'{what}: {n!r} was {was.get(n, "not there")}, is {now.get(n, "not there")}' for n in different]


# --- the record as a file, in which parts that several models have alike stand once


def part_of(name):
    return '.'.join(name.split('.')[: 2 if name.startswith('head.') else 1])  # head.decoder of head.decoder.mix.weight


def write_record(found, file):
    "JSON: model -> part -> number of the part; part -> its tensors, for each number."
    models, parts = {}, {}
    for model, tensors in found['models'].items():
        mine = {}
        for name, what in tensors.items():
            mine.setdefault(part_of(name), {})[name] = what
        for part, inside in mine.items():
            known = parts.setdefault(part, [])
            if inside not in known:
                known.append(inside)
            mine[part] = known.index(inside)
        models[model] = mine
    file.write_text(json.dumps(dict(found, models=models, parts=parts), indent=1) + '\n')


def read_record(file):
    "What `write_record` was given."
    found = json.loads(file.read_text())
    parts = found.pop('parts')
    return dict(
        found,
        models={
            model: {name: what for part, i in mine.items() for name, what in parts[part][i].items()}
            for model, mine in found['models'].items()
        },
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='compare, write nothing')
    p.add_argument('--force', action='store_true', help='write over a record that says something else')
    p.add_argument('--folder', type=Path, default=DATA / 'format1')
    a = p.parse_args()
    file, found = a.folder / 'names.json', record()
    if a.check and not file.exists():
        sys.exit(f'there is no record {file}; write it first')
    wrong = differences(read_record(file), found) if file.exists() else []
    if a.check:
        wrong += sample_faults(a.folder)
    if wrong and not a.force:
        sys.exit(
            '\n'.join(
                [
                    'differs from the record:',
                    *wrong,
                    'What people have on disk could not be read: raise FORMAT, and map the names.',
                ]
            )
        )
    if a.check:
        return
    a.folder.mkdir(parents=True, exist_ok=True)
    write_record(found, file)
    if not (a.folder / 'outputs.safetensors').exists():
        write_samples(a.folder)
    print(f'{len(found["models"])} models, {len(found["plugged"])} libraries in {file}')


if __name__ == '__main__':
    main()
