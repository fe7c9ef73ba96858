"""How people really wrap, copy, cast and save a model that has IDR: the copy that runs learns, or an error says why."""

import copy, json, pickle, warnings
from pathlib import Path

import pytest, torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from idrnet_nb.method.idr import IDRContext
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.models.plugin import add_idr, get_idr, idr_loss, remove_idr
from idrnet_nb.models.plugin_files import load_plugged, save_plugged
from idrnet_nb.models.plugin_module import IDRClassifier
from idrnet_nb.models.plugin_seam import find_seam
from test_plugin import K, answer, batch, hf_segformer, hf_upernet, smp_unet, toy, tv_fcn

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def plugged(**settings):
    return add_idr(toy(), at='3', **settings).train()


def segformer(**config):
    torch.manual_seed(0)
    return hf_segformer(**config)


def own(model, x, y):
    return F.cross_entropy(model(x), y, ignore_index=255)


def whole(model, x, y):
    return own(model, x, y) + idr_loss(model, y)


def picks(model):
    "How many classes were deleted in each copy: where it is 0, nothing was learnt."
    return {
        n: round(m.idr.deletion_count.sum().item()) for n, m in model.named_modules() if isinstance(m, IDRClassifier)
    }


def train(model, loss, steps=2):
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(steps):
        opt.zero_grad()
        loss().backward()
        opt.step()


def alike(one, other, x):
    return torch.allclose(answer(one, x), answer(other, x), rtol=1e-4, atol=1e-6)


def told(action):
    "Warnings of ours."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        action()
    return [str(w.message) for w in seen if 'idr_loss' in str(w.message)]


# --- peft


def peft_of(model, **config):
    peft = pytest.importorskip('peft', reason='peft is not installed; it is among the dev requirements')
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=['q_proj', 'v_proj'], r=2, **config)).train()


@pytest.mark.parametrize(
    'named,ran',
    [('decode_head', 'modules_to_save.default.classifier'), ('classifier', 'classifier.modules_to_save.default')],
)
def test_peft_trains_its_copy(named, ran, tmp_path):
    x, y = batch()
    model = peft_of(add_idr(segformer()), modules_to_save=[named])
    before = {n: t.clone() for n, t in get_idr(model).named_buffers(recurse=True)}
    plain = peft_of(segformer(), modules_to_save=[named])
    torch.manual_seed(3)
    first = model(pixel_values=x, labels=y).loss
    torch.manual_seed(3)
    assert first - plain(pixel_values=x, labels=y).loss > 0.3  # the coarse loss, 0.4 times about ln 4
    assert not told(lambda: train(model, lambda: model(pixel_values=x, labels=y).loss, 5))
    learnt = picks(model)
    assert sorted(learnt.values()) == [0, 12] and max(learnt, key=learnt.get).endswith(ran)
    idr = get_idr(model)
    assert not idr.relations[0].equal(torch.eye(K)) and any(not t.equal(before[n]) for n, t in idr.named_buffers())
    assert all(p.requires_grad for p in idr.parameters())
    with pytest.raises(ValueError, match=r'PeftModel is a wrapper; give what it wraps \(model.merge_and_unload'):
        save_plugged(model, tmp_path / 'a.safetensors')
    want = answer(model.base_model.model, x)
    merged = model.merge_and_unload()
    other = load_plugged(segformer(), save_plugged(merged, tmp_path / 'a.safetensors'))
    torch.testing.assert_close(answer(other, x), want, rtol=1e-4, atol=1e-5)
    remove_idr(merged)
    assert not merged._forward_hooks and merged.train()(x, labels=y).loss.isfinite()


def test_peft_saves_and_reads_its_own(tmp_path):
    peft, (x, y) = pytest.importorskip('peft', reason='peft is not installed'), batch()
    model = peft_of(add_idr(segformer()), modules_to_save=['decode_head'])
    train(model, lambda: model(pixel_values=x, labels=y).loss)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(add_idr(segformer()), tmp_path)
    assert alike(again, model, x) and picks(again) == picks(model)
    said = 'trained with pool=2, keep_answer=True.*plug it with the same stride and keep_answer'
    with pytest.raises(ValueError, match=said):
        peft.PeftModel.from_pretrained(add_idr(segformer(), keep_answer=False), tmp_path)
    with pytest.raises(ValueError, match='was written by peft; read it with PeftModel.from_pretrained'):
        load_plugged(segformer(), tmp_path)


def test_peft_with_two_adapters_and_none():
    pytest.importorskip('peft', reason='peft is not installed')
    x, y = batch()
    model = peft_of(add_idr(segformer()), modules_to_save=['decode_head'])
    model.add_adapter('b', copy.deepcopy(model.peft_config['default']))
    for name, want in (('b', [0, 0, 2]), ('default', [0, 2, 2]), ('b', [0, 2, 4])):
        model.set_adapter(name)
        model(pixel_values=x, labels=y).loss.backward()
        assert [*picks(model).values()] == want
    with model.disable_adapter(), torch.no_grad():
        model(pixel_values=x, labels=y)
    assert [*picks(model).values()] == [0, 2, 4]
    remove_idr(model)
    assert not picks(model) and model(pixel_values=x, labels=y).loss.isfinite()


def test_peft_that_freezes_idr_is_told():
    x, y = batch()
    model = peft_of(add_idr(segformer()))
    said = told(lambda: train(model, lambda: model(pixel_values=x, labels=y).loss, 3))
    assert len(said) == 1 and "modules_to_save=['decode_head']" in said[0]


def test_low_rank_updates_of_the_seam_itself():
    peft, (x, y) = pytest.importorskip('peft', reason='peft is not installed'), batch()
    model = peft.get_peft_model(add_idr(segformer()), peft.LoraConfig(target_modules=['q_proj', 'seam'], r=2)).train()
    train(model, lambda: model(pixel_values=x, labels=y).loss)
    assert type(get_idr(model).seam).__module__.startswith('peft') and [*picks(model).values()] == [4]
    want = answer(model.base_model.model, x)
    torch.testing.assert_close(answer(model.merge_and_unload(), x), want, rtol=1e-4, atol=1e-5)
    late = peft.get_peft_model(segformer(), peft.LoraConfig(target_modules=['decode_head.classifier'], r=2))
    with pytest.raises(ValueError, match='PeftModel is a wrapper; put IDR into the model first'):
        add_idr(late)
    for at in (None, 'decode_head.classifier', 'decode_head.classifier.base_layer'):
        with pytest.raises(ValueError, match='is wrapped by peft; put IDR into the model first'):
            add_idr(late.base_model.model, at=at)


# --- student and teacher, averages


class Pair(nn.Module):
    def __init__(self, student):
        super().__init__()
        self.teacher = copy.deepcopy(student)  # named_modules comes to it first
        self.student = student

    def forward(self, x, **labels):
        with torch.no_grad():
            soft = self.teacher(x, **labels)
        return self.student(x, **labels), soft


@pytest.mark.parametrize('frozen', (False, True))
def test_the_student_learns(frozen, tmp_path):
    model, (x, y) = Pair(plugged()), batch()
    if frozen:
        model.teacher.requires_grad_(False)

    def loss():
        out, soft = model(x)
        return F.cross_entropy(out, y, ignore_index=255) + F.mse_loss(out, soft) + idr_loss(model, y)

    assert not told(lambda: train(model, loss, 5))
    assert picks(model) == {'teacher.3': 0, 'student.3': 10} and get_idr(model) is get_idr(model.student)
    with pytest.raises(ValueError, match=r"Pair has IDR 2 times, at \['teacher.3', 'student.3'\]; give the part"):
        save_plugged(model, tmp_path / 'a')
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="Pair has IDR already, at 'teacher.3'"):
        add_idr(model, at='student.3')
    remove_idr(model)
    assert not picks(model)


def test_the_student_of_transformers_learns():
    model, (x, y) = Pair(add_idr(segformer()).train()), batch()
    train(model, lambda: model(x, labels=y)[0].loss)
    assert [*picks(model).values()] == [0, 4]


def test_nothing_tells_which_is_meant():
    model, (x, y) = nn.ModuleDict(dict(a=plugged(), b=plugged())), batch()
    for prepare in (lambda: None, lambda: (model.a(x), model.b(x))):
        prepare()
        for f in (get_idr, lambda m: idr_loss(m, y)):
            said = r"ModuleDict has IDR 2 times, at \['a.3', 'b.3'\], and nothing tells which is meant"
            with pytest.raises(ValueError, match=said):
                f(model)
    idr_loss(model.a, y)
    idr_loss(model, y)  # one is left
    assert picks(model) == {'a.3': 2, 'b.3': 2}


def test_averaged_models(tmp_path):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    x, y = batch()
    for args in (dict(), dict(multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)):
        model = plugged()
        mean = AveragedModel(model, **args)
        for _ in range(2):
            train(model, lambda: whole(model, x, y), 1)
            mean.update_parameters(model)
        learnt = get_idr(model).idr.deletion_count.sum()
        assert (
            abs(learnt - 4) < 1e-3
            and 0 < get_idr(mean).idr.deletion_count.sum() <= learnt
            and get_idr(mean) is get_idr(mean.module)
        )
        assert answer(mean, x).isfinite().all() and not alike(mean, model, x)
        with pytest.raises(ValueError, match=r'AveragedModel is a wrapper; give what it wraps \(model.module\)'):
            save_plugged(mean, tmp_path / 'a')
        other = load_plugged(toy(), save_plugged(mean.module, tmp_path / 'a.safetensors'))
        assert alike(other, mean, x)


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile])
def test_wrappers_come_after(wrap):
    for f in (find_seam, add_idr, lambda m: add_idr(m, at='module.3')):
        with pytest.raises(ValueError, match='is a wrapper; put IDR into the model first'):
            f(wrap(toy()))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_knows_nothing_of_the_past(copied):
    model, (x, y) = plugged(), batch()
    assert len(told(lambda: [own(model, x, y).backward() for _ in range(5)])) == 1
    model(x)
    twin = copied(model)
    assert (
        get_idr(twin).last is None
        and not told(lambda: train(twin, lambda: own(twin, x, y), 3))
        and len(told(lambda: twin(x))) == 1
    )
    assert twin is not model and get_idr(twin).forwards is not get_idr(model).forwards


def test_hooks_go_with_their_model():
    model, (x, y) = add_idr(segformer()).train(), batch()
    twin = copy.deepcopy(model)
    remove_idr(model)
    assert not model._forward_hooks and not model._forward_hooks_with_kwargs and len(twin._forward_hooks) == 1
    twin(x, labels=y).loss.backward()
    assert [*picks(twin).values()] == [2] and model(x, labels=y).loss.isfinite()
    assert len(add_idr(remove_idr(add_idr(model)))._forward_hooks) == 1
    head = add_idr(segformer())
    remove_idr(head.decode_head)  # the host's hook stays, and finds nothing
    assert head.train()(x, labels=y).loss.isfinite()


# --- a loss that was left out, and one that was meant for another forward


def test_training_without_the_loss_is_told_once():
    model, (x, y) = plugged(), batch()
    said = told(lambda: train(model, lambda: own(model, x, y), 20))
    assert (
        len(said) == 1
        and said[0].startswith('3 training steps went by without idr_loss')
        and 'remove_idr(model)' in said[0]
    )
    hf = add_idr(segformer()).train()
    assert len(told(lambda: train(hf, lambda: hf(x).logits.mean(), 8))) == 1


def quiet_cases():
    x, y = batch()

    def no_grad():
        model = plugged()
        with torch.no_grad():
            [model(x) for _ in range(40)]

    def only_forwards():
        [model(x) for model in [plugged()] for _ in range(40)]

    def accumulation():
        model = plugged()
        for _ in range(40):
            (whole(model, x, y) / 8).backward()

    def loss_after_backward():
        model = plugged()
        for _ in range(6):
            own(model, x, y).backward(retain_graph=True)
            idr_loss(model, y).backward()

    def several_backwards():
        model = plugged()
        for _ in range(6):
            loss = whole(model, x, y)
            loss.backward(retain_graph=True)
            loss.backward()

    def labels():
        model = add_idr(segformer()).train()
        train(model, lambda: model(x, labels=y).loss, 6)

    def dropped_batches():
        model = plugged()
        for i in range(9):
            loss = own(model, x, y)
            if i % 2:
                continue  # not finite, say
            (loss + idr_loss(model, y)).backward()

    def sometimes_without_labels():
        model = plugged()
        for _ in range(4):
            whole(model, x, y).backward()
            [own(model, x, y).backward() for _ in range(5)]

    def evaluation_between():
        model = plugged()
        for _ in range(6):
            whole(model, x, y).backward()
            answer(model, x)
            model.train()

    def plugging():
        [add_idr(tv_fcn()) for _ in range(5)]

    def zero_momenta():
        model = plugged()
        for _ in range(6):
            (own(model, x, y) + idr_loss(model, y, relation_momentum=0, memory_momentum=0)).backward()

    return {n: f for n, f in locals().items() if callable(f)}


@pytest.mark.parametrize('case', quiet_cases())
def test_no_false_alarm(case):
    assert not told(quiet_cases()[case])


def test_compiled_training_without_the_loss():
    torch._dynamo.reset()
    model, (x, y) = plugged(), batch()
    fast = torch.compile(model, backend='eager', fullgraph=True)
    assert (
        not told(lambda: train(fast, lambda: own(fast, x, y), 4))
        and len(told(lambda: (fast.eval(), fast.train()))) == 1
    )
    torch._dynamo.reset()
    hf = add_idr(segformer()).train()
    fast = torch.compile(hf, backend='eager')
    assert not told(lambda: (train(fast, lambda: fast(x, labels=y).loss, 3), fast.eval())) and [
        *picks(hf).values()
    ] == [6]


def test_two_forwards_before_one_loss():
    model, (x, y) = plugged(), batch()
    outs = [model(x), model(x.flip(0))]
    said = told(lambda: (idr_loss(model, y), model(x), idr_loss(model, y)))
    assert len(outs) == 2
    assert len(said) == 1 and '1 earlier forward(s) with gradients' in said[0]


def test_labels_and_a_loss_by_hand_are_not_counted_twice():
    model, (x, y) = add_idr(segformer()).train(), batch()
    model(x, labels=y)
    with pytest.raises(RuntimeError, match='labels= have it in their loss already'):
        idr_loss(model, y)
    assert [*picks(model).values()] == [2]


# --- wrapping and training as libraries do


def test_gradient_checkpointing_of_transformers():
    model, (x, y) = add_idr(segformer()).train(), batch()
    model.gradient_checkpointing_enable()
    train(model, lambda: model(x, labels=y).loss)
    assert [*picks(model).values()] == [4]


def test_accelerate(tmp_path):
    accelerate, (x, y) = pytest.importorskip('accelerate'), batch()
    run = accelerate.Accelerator(cpu=True)
    for model, loss in ((plugged(), whole), (add_idr(segformer()).train(), lambda m, x, y: m(x, labels=y).loss)):
        prepared, opt = run.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        for _ in range(2):
            opt.zero_grad()
            run.backward(loss(prepared, x, y))
            opt.step()
        assert [*picks(prepared).values()] == [4]
    save_plugged(run.unwrap_model(prepared), tmp_path / 'a.safetensors')


def test_trainer_of_transformers_and_its_checkpoints(tmp_path):
    hf, (x, y) = pytest.importorskip('transformers'), batch()

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return dict(pixel_values=x[i % 2], labels=y[i % 2])

    torch.manual_seed(0)
    model = add_idr(hf_upernet(), stride=16, keep_answer=False)
    args = hf.TrainingArguments(
        str(tmp_path),
        max_steps=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    assert not told(hf.Trainer(model, args, train_dataset=Rows()).train)
    other = load_plugged(hf_upernet(), tmp_path / 'checkpoint-4')
    assert alike(other, model, x) and picks(other) == picks(model) == {'decode_head.classifier': 8}
    resumed = add_idr(hf_upernet(), stride=16, keep_answer=False)
    args.max_steps = 6
    hf.Trainer(resumed, args, train_dataset=Rows()).train(resume_from_checkpoint=str(tmp_path / 'checkpoint-4'))
    assert picks(resumed) == {'decode_head.classifier': 12}
    with pytest.raises(ValueError, match='trained with pool=4, keep_answer=False'):
        hf.Trainer(add_idr(hf_upernet()), args, train_dataset=Rows()).train(
            resume_from_checkpoint=str(tmp_path / 'checkpoint-4')
        )


# --- save_pretrained of other libraries


@pytest.mark.parametrize('maker', [segformer, hf_upernet])
def test_a_folder_of_transformers_is_read_back(maker, tmp_path):
    x, y = batch()
    config = maker().config

    def make():
        return type(maker())(copy.deepcopy(config))

    model = add_idr(make(), width=8, stride=4, dropout=0.2).train()
    model(x, labels=y).loss.backward()
    twin = copy.deepcopy(model)
    twin.save_pretrained(tmp_path / 'a')
    other = load_plugged(make(), tmp_path / 'a')
    assert (
        alike(other, model, x) and get_idr(other).settings == get_idr(model).settings and picks(other) == picks(model)
    )
    other.save_pretrained(tmp_path / 'b', max_shard_size='20KB')
    assert len([*(tmp_path / 'b').glob('*.safetensors')]) > 1
    assert alike(load_plugged(type(model).from_pretrained(tmp_path / 'b'), tmp_path / 'b'), model, x)
    remove_idr(other).save_pretrained(tmp_path / 'c')
    assert alike(type(model).from_pretrained(tmp_path / 'c'), other, x)
    assert 'idrnet' not in (tmp_path / 'c' / 'config.json').read_text() and not hasattr(config, 'idrnet_nb_plug')
    with pytest.raises(ValueError, match='was not written by save_pretrained of a plugged model'):
        load_plugged(make(), tmp_path / 'c')


def test_two_models_of_one_config(tmp_path):
    config = segformer().config
    plain, model = (type(segformer())(config) for _ in range(2))
    add_idr(model)
    plain.save_pretrained(tmp_path / 'a')
    assert 'idrnet' not in (tmp_path / 'a' / 'config.json').read_text()


def test_a_folder_that_does_not_fit(tmp_path):
    add_idr(segformer()).save_pretrained(tmp_path / 'a')
    for make, words in (
        (lambda: hf_segformer(k=5), 'with 4 classes, this SegformerForSemanticSegmentation has 5'),
        (smp_unet, 'this Unet has no convolution'),
        (hf_upernet, 'does not fit this UperNetForSemanticSegmentation'),
        (lambda: add_idr(segformer()), 'has IDR already'),
    ):
        model = make()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            load_plugged(model, tmp_path / 'a')
        assert (
            all(t.equal(before[n]) for n, t in model.state_dict().items())
            and model.state_dict().keys() == before.keys()
        )
    (tmp_path / 'a' / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match=r'has no model\*.safetensors'):
        load_plugged(segformer(), tmp_path / 'a')
    for text in ('', '[]', '{}', '[' * 100_000, '{"idrnet_nb_plug": 3}', '{"idrnet_nb_plug": {"format": 1}}'):
        (tmp_path / 'a' / 'config.json').write_text(text)
        with pytest.raises(ValueError, match='load_plugged'):
            load_plugged(segformer(), tmp_path / 'a')


def test_a_folder_that_is_broken(tmp_path):
    add_idr(segformer()).save_pretrained(tmp_path)
    path, index = tmp_path / 'model.safetensors', tmp_path / 'model.safetensors.index.json'
    for text in ('{', '[]', '{"weight_map": {"x": "../other.safetensors"}}', '{"weight_map": {"x": 3}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match='names files that are not in it'):
            load_plugged(segformer(), tmp_path)
    index.unlink()
    whole = path.read_bytes()
    for n in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match='cannot be read as safetensors'):
            load_plugged(segformer(), tmp_path)
    path.write_bytes(whole)
    load_plugged(segformer(), tmp_path)


def test_smp_refuses_what_it_could_not_read(tmp_path):
    model, (x, _) = copy.deepcopy(add_idr(smp_unet())), batch()
    for twin in (model, pickle.loads(pickle.dumps(model))):
        for name, where in (('save_pretrained', tmp_path / 'm'), ('push_to_hub', 'somebody/model')):
            with pytest.raises(ValueError, match=rf'{name} does not know IDR.*save_plugged\(model, path\)'):
                getattr(twin, name)(where)
    assert not [*tmp_path.iterdir()]
    remove_idr(model).save_pretrained(tmp_path / 'm')
    assert alike(type(model).from_pretrained(tmp_path / 'm'), model, x)


def test_weights_trained_with_other_settings_are_refused():
    weights = plugged(stride=4).state_dict()
    plugged(stride=4, dropout=0.5).load_state_dict(weights)
    for settings in (dict(stride=8), dict(stride=4, keep_answer=False)):
        with pytest.raises(ValueError, match='trained with pool=4, keep_answer=True of IDR'):
            plugged(**settings).load_state_dict(weights)
    older = {n: t for n, t in weights.items() if not n.endswith('_extra_state')}
    plugged(stride=8).load_state_dict(older)
    for broken in (torch.zeros(2), torch.full((3,), torch.nan), 'x'):
        with pytest.raises(ValueError, match='are broken'):
            plugged(stride=4).load_state_dict({**weights, '3._extra_state': broken})


def test_files_of_before_are_read(tmp_path):
    model, path, (x, _) = plugged(), tmp_path / 'a.safetensors', batch()
    save_plugged(model, path)
    with safe_open(path, 'pt') as f:
        note = f.metadata()
    save_file({n: t for n, t in load_file(path).items() if not n.endswith('_extra_state')}, path, metadata=note)
    assert alike(load_plugged(toy(), path), model, x)


# --- headers that say something else than save_plugged would

SETTINGS = dict(width=6, dim=6, pool=8, keep_answer=True, dropout=0.1)


def said(**settings):
    return dict(settings={**SETTINGS, **settings})


HEADERS = [  # what the header says, words of the error
    *[(dict(format=v), 'says format=.*, must be a whole number') for v in ('1', None, -1, 1.5, True, [])],
    *[({n: v}, f'says {n}=.*, must be a word') for n, v in (('version', 3), ('model', []), ('at', 3), ('at', None))],
    (dict(at='../../etc'), "at '../../etc'.*the file has None"),
    *[(dict(k=v), 'says k=.*, must be a whole number of classes') for v in ('4', None, 4.5, 1, 10**12, True)],
    (dict(k=5), r'would be \(5, 6\); the file has \(4, 6\)'),
    *[(dict(settings=v), 'says settings=.*must be a dict') for v in (None, 'x', [1], 3)],
    (dict(settings={}), 'unknown or missing: dim, dropout, keep_answer, pool, width'),
    (said(colour=1), 'unknown or missing: colour'),
    *[
        (said(**{n: v}), f'its header: {n}=.*must be positive')
        for n in ('width', 'dim', 'pool')
        for v in (None, '6', 0, -1, 2.5, True, [], 10**9)
    ],
    *[(said(keep_answer=v), 'its header: keep_answer=.*True or False') for v in (None, 1, 'yes')],
    *[(said(dropout=v), 'its header: dropout=.*from 0 to below 1') for v in (None, '0.1', 1, -0.1, float('nan'), True)],
    (said(width=60000), r'width=60000.*would be \(4, 60000\); the file has \(4, 6\)'),
    (said(dim=60000), r'dim=60000.*would be \(60000, 36, 1, 1\); the file has \(6, 36, 1, 1\)'),
    (said(pool=4), 'trained with pool=8'),
]


def rewrite(path, text):
    save_file(load_file(path), path, metadata={'idrnet_nb.plug': text})
    return path


@pytest.mark.parametrize('change,words', HEADERS, ids=[str(change)[:60] for change, _ in HEADERS])
def test_strange_headers(change, words, tmp_path):
    path = save_plugged(plugged(width=6), tmp_path / 'a.safetensors')
    with safe_open(path, 'pt') as f:
        note = json.loads(f.metadata()['idrnet_nb.plug'])
    model = toy()
    with pytest.raises(ValueError, match=words):
        load_plugged(model, rewrite(path, json.dumps({**note, **change})))
    assert model.state_dict().keys() == toy().state_dict().keys()
    assert (
        get_idr(load_plugged(model, rewrite(path, json.dumps(note)))).settings == SETTINGS
    )  # and nothing was left behind


@pytest.mark.parametrize(
    'text', ['', 'null', '3', '"x"', '[]', '{}', '{"format": 1}', '[' * 100_000, '{', '{"format": ' + '9' * 5000 + '}']
)
def test_strange_notes(text, tmp_path):
    path = save_plugged(plugged(), tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='was not written by save_plugged'):
        load_plugged(toy(), rewrite(path, text))


def test_only_the_file_is_opened(tmp_path, monkeypatch):
    path = save_plugged(plugged(), tmp_path / 'a.safetensors')
    seen, really = [], open
    monkeypatch.setattr('builtins.open', lambda p, *a, **k: (seen.append(str(p)), really(p, *a, **k))[1])
    load_plugged(toy(), path)
    assert not [p for p in seen if Path(p) != path and 'safetensors' not in p]


# --- half precision


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_tables_stay_exact_in_a_model_of_half_precision(dtype):
    model, (x, y) = plugged().to(dtype), batch(4)
    for b in get_idr(model).idr.buffers(recurse=False):
        assert b.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {dtype}
    for _ in range(140):
        F.cross_entropy(model(x.to(dtype)).float(), y, ignore_index=255)
        idr_loss(model, y)
    assert get_idr(model).idr.deletion_count.sum().round() == 560
    assert all(b.isfinite().all() for b in model.buffers())


def test_casting_keeps_what_was_learnt():
    context = IDRContext(3, 4, 2)
    for b in context.buffers(recurse=False):
        nn.init.normal_(b)
    before = {n: b.clone() for n, b in context.named_buffers(recurse=False)}
    for cast in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to('cpu', torch.bfloat16),
        lambda m: nn.Sequential(m).half()[0],
    ):
        for n, b in cast(context).named_buffers(recurse=False):
            assert b.dtype == torch.float32 and b.equal(before[n])
    assert (
        context.attention.out.conv.weight.dtype == torch.float16
        and context.double().deletion_count.dtype == torch.float64
    )
    assert {b.device.type for b in IDRContext(3, 4, 2).to('meta').buffers()} == {'meta'}
    assert {b.dtype for b in IDRContext(3, 4, 2).to('meta').to_empty(device='cpu').buffers(recurse=False)} == {
        torch.float32
    }


def test_our_own_model_in_half_precision():
    model = build_segmentor('fcn', 'tiny', K, width=8, attention_width=6, aux_width=4).bfloat16().train()
    x, y = torch.randint(0, 256, (2, 3, 32, 32)), torch.randint(0, K, (2, 32, 32))
    for _ in range(2):
        model(x.bfloat16(), y).loss.backward()
    assert model.head.idr.deletion_count.dtype == torch.float32 and model.head.idr.deletion_count.sum().round() == 4


def test_plugging_a_model_of_half_precision():
    model, (x, y) = add_idr(toy().bfloat16(), at='3').train(), batch()
    train(model, lambda: F.cross_entropy(model(x.bfloat16()).float(), y, ignore_index=255) + idr_loss(model, y))
    assert get_idr(model).idr.memory.dtype == torch.float32 and get_idr(model).idr.memory.any()


# --- labels and void


@pytest.mark.parametrize('dtype', ('uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32', 'int64'))
def test_labels_of_any_integer(dtype):
    x, y = batch()
    want = None
    y[y == 255] = 100
    for kind in (dtype, 'int64'):
        torch.manual_seed(0)
        model = plugged()
        model(x)
        got = idr_loss(model, y.to(getattr(torch, kind)), ignore=100)
        want = got if want is None else want
        assert got == want
    model(x)
    with pytest.raises(ValueError, match=r'not ignore \(255\): 100 \(128 pixels\)'):
        idr_loss(model, y.to(getattr(torch, dtype)))


@pytest.mark.parametrize('k', (256, 300))
def test_void_is_never_a_class(k):
    x, y = batch()
    model = add_idr(toy(k), at='3').train()
    model(x)
    with pytest.raises(ValueError, match=rf'ignore=255 is the id of one of the {k} classes.*give ignore={k} or beyond'):
        idr_loss(model, y.clamp(max=3))
    y[:, :4] = k
    assert idr_loss(model, y, ignore=k).isfinite()
    model(x)
    y[y == k] = -1
    assert idr_loss(model, y, ignore=-1).isfinite()
    with pytest.raises(ValueError, match='give it a loss_ignore_index that is no class, such as -1'):
        add_idr(hf_segformer(k)).train()(x, labels=y.clamp(min=0))
    assert add_idr(hf_segformer(k, semantic_loss_ignore_index=-1)).train()(x, labels=y).loss.isfinite()


def test_arguments_that_cannot_be():
    model, (x, y) = plugged(), batch()
    model(x)
    for args, words in (
        (dict(ignore=2), 'ignore=2 is the id of one of the 4 classes'),
        (dict(ignore=None), 'ignore=None'),
        (dict(ignore='x'), "ignore='x'"),
        (dict(coarse_weight=-1), 'coarse_weight=-1'),
        (dict(coarse_weight=float('nan')), 'coarse_weight=nan'),
        (dict(relation_momentum=2), 'relation_momentum=2'),
        (dict(memory_momentum=-0.1), 'memory_momentum=-0.1'),
        (dict(uniform=torch.rand(3, K)), r'uniform must be `b k`, \(2, 4\)'),
        (dict(deleted=torch.zeros(5).long()), 'must be 2 class ids'),
        (dict(deleted=torch.zeros(2)), 'of torch.float32'),
        (dict(deleted=torch.tensor([9, 0])), r'deleted=\[9, 0\] must be class ids, 0 to 3'),
    ):
        with pytest.raises(ValueError, match=words):
            idr_loss(model, y, **args)
    for label, words in (
        (y.numpy(), 'a tensor'),
        (None, 'a tensor'),
        (y[:, None], r'drop the channel axis: label\[:,0\]'),
        (y[0], 'b H W'),
    ):
        with pytest.raises(ValueError, match=words):
            idr_loss(model, label)
    assert idr_loss(model, y).isfinite() and picks(model) == {'3': 2}
    for args in (
        dict(width='8'),
        dict(width=2.5),
        dict(width=10**9),
        dict(dim=True),
        dict(stride='8'),
        dict(stride=None),
        dict(dropout='x'),
        dict(dropout=float('nan')),
        dict(keep_answer=1),
        dict(example=(2, 3)),
        dict(example=torch.zeros(3, 8, 8)),
        dict(at=3),
    ):
        with pytest.raises(ValueError, match=next(iter(args))):
            add_idr(toy(), **{'at': '3', **args})


# --- seams of every kind


def with_seam(last):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), last)


@pytest.mark.parametrize('norm', [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_seam_with_a_norm_of_its_weight(norm, tmp_path):
    def make():
        torch.manual_seed(0)
        model = with_seam(nn.Conv2d(6, K, 1))
        norm(model[2])
        return model

    model, (x, y) = make().eval(), batch()
    plain, names = answer(model, x), list(model.state_dict())
    torch.testing.assert_close(answer(add_idr(model, at='2'), x), plain)
    train(model.train(), lambda: whole(model, x, y))
    assert alike(load_plugged(make(), save_plugged(model, tmp_path / 'a.safetensors')), model, x)
    assert list(remove_idr(model).state_dict()) == names


def test_a_seam_whose_weight_is_shared(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, K, 1), nn.Conv2d(3, K, 1)
            self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(self.first(x).relu()[:, :3])

    model, (x, y) = add_idr(Tied(), at='last').train(), batch()
    train(model, lambda: whole(model, x, y))
    other = load_plugged(Tied(), save_plugged(model, tmp_path / 'a.safetensors'))
    for m in (model, other):
        assert get_idr(m).seam.weight is m.first.weight
    assert alike(other, model, x)


@pytest.mark.parametrize(
    'last,words',
    [
        (nn.ConvTranspose2d(6, K, 1), "'2' is a ConvTranspose2d; the seam must be the Conv2d"),
        (nn.Linear(32, K), 'is a Linear.*write it as one'),
        (nn.LazyConv2d(K, 1), 'LazyConv2d without weights; run the model once'),
    ],
)
def test_seams_that_are_refused(last, words):
    model = with_seam(last)
    with pytest.raises(ValueError, match=words):
        add_idr(model, at='2')
    assert model[2] is last


def test_other_seams_and_states():
    x, y = batch()
    model = add_idr(with_seam(nn.Conv2d(6, K, 1, groups=2)), at='2').train()
    train(model, lambda: whole(model, x, y))
    for training in (True, False):
        assert get_idr(add_idr(toy().train(training), at='3')).training == training
    model = add_idr(tv_fcn(aux=True)).train()  # two heads: the main one is plugged, the other stays
    assert [*picks(model)] == ['classifier.4'] and isinstance(model.aux_classifier[4], nn.Conv2d)
    frozen = toy().requires_grad_(False)
    model = add_idr(frozen, at='3').train()
    train(model, lambda: whole(model, x, y))
    assert picks(model) == {'3': 4} and get_idr(model).final.logits.weight.requires_grad
    model.requires_grad_(False)
    assert len(told(lambda: [(model(x), idr_loss(model, y)) for _ in range(2)])) == 1
