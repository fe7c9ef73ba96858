"""The authors' checkpoints: every name of eight published models; both backbones against their definition; whole models; one command."""
import json, os
from pathlib import Path
import pytest, torch
import author_backbones
from idrnet_nb import author
from idrnet_nb.author import PUBLISHED, convert, fill, read_checkpoint, settings_of, their_name, turn_merging
from idrnet_nb.backbone import Backbone
from idrnet_nb.cli import main
from idrnet_nb.head import upsample
from idrnet_nb.idrnet import SegHead, Segmentor

HERE = Path(__file__).parent
KEYS = json.loads((HERE/'author_keys.json').read_text()) # model -> name -> shape, of eight published checkpoints
full = pytest.mark.skipif(os.environ.get('IDRNET_FULL')!='1', reason='large: set IDRNET_FULL=1')
TINY_SWIN = dict(name='swin_tiny_patch4_window7_224', pad_to=1, embed_dim=12, depths=(2,2,4,2), num_heads=(2,2,4,4), window_size=4)

def built(name):
    s = settings_of(name)
    return Segmentor(Backbone(**s['backbone']), s['head']).eval()

def state_of(keys, seed=0):
    "Random values for a list of names and shapes; norms stay near what norms are, so that signals neither die nor explode."
    gen, out = torch.Generator().manual_seed(seed), {}
    for n,shape in keys.items():
        if n.endswith(('num_batches_tracked','relative_position_index')): out[n] = torch.zeros(shape, dtype=torch.long)
        elif n.endswith('running_var') or (n.endswith('weight') and 'norm' in n.split('.')[-2]) : out[n] = torch.rand(shape, generator=gen)+.5
        elif len(shape)<2: out[n] = torch.randn(shape, generator=gen)*.1 + (n.endswith('weight'))
        else: out[n] = torch.randn(shape, generator=gen)*(2/max(1,torch.Size(shape[1:]).numel()))**.5
    return out

# --- names: eight real lists

def test_eight_lists(): assert len(KEYS)==8 and set(KEYS)<=set(PUBLISHED) and all(len(k)>=400 for k in KEYS.values())

@pytest.mark.parametrize('name', sorted(KEYS, key=lambda n: 'swin' not in n)) # the largest first: it takes a minute
def test_convert_every_key_list(name, tmp_path):
    "A file of random values under the published names becomes a model: nothing left over, nothing unfilled, each value in its place."
    state = state_of(KEYS[name])
    torch.save({'model':state, 'epoch':1}, tmp_path/'c.pth')
    assert convert(tmp_path/'c.pth', name, tmp_path/'out')==len(state)
    model = Segmentor.from_pretrained(tmp_path/'out')
    (tmp_path/'c.pth').unlink()
    names, used = author._names(model), set()
    for ours,t in model.state_dict().items():
        want = state[names[ours]]
        assert torch.equal(t, turn_merging(want) if 'layers_' in ours and '.downsample.' in ours else want), ours
        used.add(names[ours])
    left = set(state)-used
    assert left==set(author._recomputed(model)) and len(used)==len(names)
    assert model.about['space']['name']==settings_of(name)['space'].name and model.about['source']['model']==name

def test_swin_names_without_its_size():
    "The 535 names of Swin-L, on the meta device: no memory, every shape."
    name = 'idrnet_upernet_swinlarge_ade20k'
    with torch.device('meta'): model = built(name)
    names, known = author._names(model), author._recomputed(model)
    shapes = {n:list(model.state_dict()[o].shape) for o,n in names.items()} | {n:list(s) for n,s in known.items()}
    assert shapes==KEYS[name] and len(known)==24

def test_all_published_can_be_named():
    for name in PUBLISHED: assert settings_of(name)['head'].num_classes==settings_of(name)['space'].num_classes

# --- numbers: the definition judges

def relative(a, b): return ((a-b).abs().max()/b.abs().max()).item()

@pytest.mark.parametrize('size', [(64,64), (65,97), (33,40)])
def test_resnet_is_theirs(size):
    torch.manual_seed(0)
    net = Backbone('resnet50c', output_stride=8, pad_to=1).eval()
    state = {author._resnet_name(n): torch.rand_like(t)+.5 if n.endswith('running_var') else t+torch.randn_like(t)*.01 if t.is_floating_point() else t
             for n,t in net.state_dict().items()}
    net.load_state_dict({n:state[author._resnet_name(n)] for n in net.state_dict()})
    x = torch.randn(2,3,*size)
    with torch.no_grad():
        for got,want in zip(net(x), author_backbones.resnet(x, state)):
            assert got.shape==want.shape and relative(got, want)<1e-5

@pytest.mark.parametrize('size', [(64,64), (63,41), (16,16), (9,70), (32,100)])
def test_swin_is_theirs(size):
    "Sizes that fill the windows, sizes that do not, maps smaller than a window, maps with odd sides before merging."
    torch.manual_seed(0)
    net = Backbone(**TINY_SWIN).eval()
    state = {author._swin_name(n): t+torch.randn_like(t)*.2 for n,t in net.state_dict().items()}
    merged = lambda n: '.downsample.' in n
    net.load_state_dict({n: turn_merging(state[author._swin_name(n)]) if merged(n) else state[author._swin_name(n)] for n in net.state_dict()})
    x = torch.randn(2,3,*size)
    with torch.no_grad():
        got = net(x); want = author_backbones.swin(x, state, TINY_SWIN['depths'], TINY_SWIN['num_heads'], TINY_SWIN['window_size'])
        for a,b in zip(got, want): assert a.shape==b.shape and relative(a, b)<1e-5
        net.load_state_dict({n:state[author._swin_name(n)] for n in net.state_dict()})
        assert relative(net(x)[1], want[1])>1e-2 # without turning the merging weights it is another network: the check can fail

def test_window_index_is_timms():
    from timm.models.swin_transformer import get_relative_position_index
    for w in (2,7,12): assert torch.equal(author_backbones.index_of(w), get_relative_position_index(w,w))

def whole(name, size, judge):
    "Logits of a filled model against backbone by definition, head by golden-checked names, one resize at the end."
    state = state_of(KEYS[name])
    model = built(name); fill(model, state)
    images = torch.randint(0,256,(2,3,*size),dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3,1,1) for v in ((123.675,116.28,103.53),(58.395,57.12,57.375)))
    head = SegHead(model.backbone.channels, model.head.config).eval()
    head.load_state_dict({n:state[their_name(n, head.config)] for n in head.state_dict()})
    with torch.no_grad():
        want = upsample(head(judge((images-mean)/std, state))['out'], size)
        got = model(images)['out']
        assert relative(got, want)<1e-4 and got.shape==(2,head.config.num_classes,*size)
        assert torch.equal(got.argmax(1), want.argmax(1)) or (got.argmax(1)!=want.argmax(1)).float().mean()<1e-3

@pytest.mark.parametrize('name', ['idrnet_fcn_resnet50os8_ade20k','idrnet_ppm_resnet50os8_cityscapes','idrnet_upernet_resnet50os8_lip'])
def test_whole_resnet_models(name): whole(name, (41,57), author_backbones.resnet)

@full
@pytest.mark.parametrize('name', ['idrnet_aspp_resnet50os8_ade20k','idrnet_upernet_resnet50os8_ade20k','idrnet_ppm_resnet50os8_ade20k','idrnet_upernet_resnet50os8_cocostuff10k'])
def test_other_whole_resnet_models(name): whole(name, (65,97), author_backbones.resnet)

@full
def test_whole_swin_large():
    whole('idrnet_upernet_swinlarge_ade20k', (97,130), lambda x,s: author_backbones.swin(x, s, (2,2,18,2), (6,12,24,48), 12))

# --- what does not fit is named, and changes nothing

NAME = 'idrnet_fcn_resnet50os8_lip'

@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    model = built(NAME)
    return model, {n:t.clone() for t,n in zip(model.state_dict().values(), author._names(model).values())}

@pytest.mark.parametrize('spoil,message', [
    (lambda s: s|{'bottleneck.9.weight':torch.ones(2)}, r'too much: 1 \(bottleneck\.9\.weight\)'),
    (lambda s: {k:v for k,v in s.items() if k!='backbone_net.stem.7.running_mean'}, r'missing: 1 \(backbone_net\.stem\.7\.running_mean\)'),
    (lambda s: s|{'decoder_stage1.0.weight':torch.ones(512,513,1,1)}, r'wrong shape: 1 \(decoder_stage1\.0\.weight: file \(512, 513, 1, 1\), model \(512, 512, 1, 1\)\)'),
    (lambda s: s|{'class_relations_mean':torch.full((20,20),torch.nan)}, r'not finite: 1 \(class_relations_mean\)'),
    (lambda s: s|{'decoder_stage2.4.weight':torch.ones(19,512,1,1)}, r'trained for 19 classes \(as cityscapes has\), the model named has 20'),
    (lambda s: {f'net.{k}':v for k,v in s.items()}, r'missing: 400 .*too much: 400')])
def test_unfit_state_changes_nothing(plain, spoil, message):
    model, state = plain
    before = {n:t.clone() for n,t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message): fill(model, spoil(state))
    assert all(torch.equal(t, before[n]) for n,t in model.state_dict().items())

class Evil:
    def __reduce__(self): return os.system, ('echo run > evil.txt',)

@pytest.mark.parametrize('content,message', [
    (lambda p: torch.save({'model':{'a':Evil()}}, p), 'holds code, which is not run'),
    (lambda p: torch.save([1,2], p), "no weights under 'model'"),
    (lambda p: torch.save({'model_ema':{}}, p), r"it has \['model_ema'\]"),
    (lambda p: p.write_bytes(b'\x80\x02cos\nsystem\n'), 'cannot be read as weights'),
    (lambda p: p.write_bytes(b''), 'cannot be read as weights')])
def test_unreadable_checkpoints(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    content(tmp_path/'c.pth')
    with pytest.raises(ValueError, match=message): read_checkpoint(tmp_path/'c.pth')
    assert not (tmp_path/'evil.txt').exists()

def test_cut_checkpoint(tmp_path, plain):
    torch.save({'model':plain[1]}, tmp_path/'c.pth')
    whole = (tmp_path/'c.pth').read_bytes(); (tmp_path/'c.pth').write_bytes(whole[:len(whole)//2])
    with pytest.raises(ValueError, match='c.pth.*cannot be read as weights'): convert(tmp_path/'c.pth', NAME, tmp_path/'out')
    assert not (tmp_path/'out').exists()

# --- one command

def test_command(tmp_path, plain, capsys):
    torch.save({'model':plain[1]}, tmp_path/'c.pth')
    assert main(['convert', str(tmp_path/'c.pth'), '--model', NAME, '--out', str(tmp_path/'out')])==0
    said = capsys.readouterr().out
    assert '400 tensors' in said and 'idrnet evaluate --model' in said and '--data lip' in said
    assert sorted(p.name for p in (tmp_path/'out').iterdir())==['README.md','config.json','model.safetensors']
    assert main(['convert', str(tmp_path/'c.pth'), '--model', 'idrnet_fcn_lip', '--out', str(tmp_path/'no')])==2
    assert 'no published model' in capsys.readouterr().err and not (tmp_path/'no').exists()
    assert main(['convert', '--list'])==0 and capsys.readouterr().out.split()==list(PUBLISHED)

def test_command_without_a_file(capsys):
    assert main(['convert', 'nowhere.pth', '--model', NAME, '--out', 'never'])==2
    assert "no file 'nowhere.pth'" in capsys.readouterr().err
