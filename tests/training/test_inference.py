"""The protocol of a score: every part of it against a plain loop, on odd sizes, from Python and from the command line."""

from types import SimpleNamespace
import gc, json, math
from dataclasses import asdict
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from idrnet_nb import cli
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.readers import read_mask, read_image
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import EvalProtocol, evaluate, load_model, probabilities, save_model, window_starts
from idrnet_nb.training.metrics import Meter
from test_dataset import LAYOUTS, layout, real

K = 6
SMALL = dict(width=8, attention_width=4, aux_width=4)
R50 = EvalProtocol((32, 80), keep_ratio=True, average='logits')  # the published ones, smaller
SWIN = EvalProtocol((40, 160), keep_ratio=True, window=(40, 40), step=(26, 26))
MULTI = SWIN.but(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, flip_pairs=((1, 2), (4, 5)))
LIP = EvalProtocol(
    (37, 37), window=(31, 31), step=(20, 20), scales=(0.75, 1.0, 1.25), flip=True, flip_pairs=((1, 2), (4, 5))
)
PROTOCOLS = dict(
    plain=EvalProtocol(),
    r50=R50,
    swin=SWIN,
    multi=MULTI,
    lip=LIP,
    exact=EvalProtocol((37, 29), average='logits'),
    votes=EvalProtocol(scales=(0.6, 1.0), flip=True, flip_pairs=((0, 3),), average='logits'),
    cut=EvalProtocol(window=(16, 24), average='logits'),
    grid=R50.but(average='grid_probabilities'),
    grid_many=EvalProtocol(scales=(0.6, 1.0), flip=True, flip_pairs=((0, 3),), average='grid_probabilities'),
    grid_cut=EvalProtocol((37, 29), window=(16, 24), flip=True, average='grid_probabilities'),
    wide=EvalProtocol(window=(9, 200), step=(9, 1), flip=True),
)
SIZES = (30, 47), (64, 33), (5, 90), (9, 7)


class Net(torch.nn.Module):
    "A net whose own grid is coarse: every 4 pixels a cell, and left is not like right."

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = torch.nn.Conv2d(3, K, 5, stride=4, padding=2)
        self.head = torch.nn.Module()
        self.head.config = type('Config', (), dict(num_classes=K, ignore=255))
        self.backbone = torch.nn.Module()
        self.backbone.pad_to = 1

    def forward(self, images, size=None, upsample_logits=True):
        assert images.dtype == torch.float32 and not self.training
        logits = self.conv(images / 64 - 2)
        if not upsample_logits:
            return SimpleNamespace(logits=logits)
        return SimpleNamespace(
            logits=F.interpolate(logits, size=size or images.shape[-2:], mode='bilinear', align_corners=False)
        )


def picture(h, w, seed=0):
    return torch.from_numpy(np.random.default_rng((h, w, seed)).integers(0, 256, (3, h, w), dtype=np.uint8))


def truth(h, w, seed=0):
    label = torch.from_numpy(np.random.default_rng((h, w, seed, 1)).integers(0, K + 1, (h, w)))
    return torch.where(label == K, 255, label)


def bilinear(x, **how):
    return F.interpolate(x, mode='bilinear', align_corners=False, **how)


def by_hand(net, image, p, size):
    "The answer as one would tell it to a person: mean over looks, at `size`."
    h, w = image.shape[-2:]
    if p.resize is not None and p.keep_ratio:
        scale = min(max(p.resize) / max(h, w), min(p.resize) / min(h, w))
        h, w = max(1, int(h * scale + 0.5)), max(1, int(w * scale + 0.5))
    elif p.resize is not None:
        h, w = p.resize
    x = bilinear(image[None].float(), size=(h, w)).round()
    looks = []
    for scale in p.scales:
        for mirror in [False, True] if p.flip else [False]:
            y = x if scale == 1 else bilinear(x, size=(max(1, math.floor(h * scale)), max(1, math.floor(w * scale))))
            if scale != 1 and min(h, w) * scale >= 1:
                y = bilinear(x, scale_factor=scale)
            assert y.shape[-2:] == (max(1, math.floor(h * scale)), max(1, math.floor(w * scale)))
            if mirror:
                y = y.flip(-1)
            if p.window is None and p.average == 'logits':
                out = net(y, size=size).logits
            elif p.window is None and p.average == 'grid_probabilities':
                out = net(y, upsample_logits=False).logits.softmax(1)
            elif p.window is None:
                out = net(y).logits.softmax(1)
            else:
                out = windows_by_hand(net, y, p.window, p.step, p.average)
            out = bilinear(out, size=size)
            if mirror:
                out = out.flip(-1)
                swapped = out.clone()
                for a, b in p.flip_pairs:
                    swapped[:, a], swapped[:, b] = out[:, b], out[:, a]
                out = swapped
            looks.append(out)
    return torch.stack(looks).mean(0)


def windows_by_hand(net, y, window, step, average):
    "With the number of windows as the authors count them: as many steps as are needed to reach the end."
    h, w = y.shape[-2:]
    total, count = torch.zeros(1, K, h, w), torch.zeros(h, w)
    for i in range(max(h - window[0] + step[0] - 1, 0) // step[0] + 1):
        for j in range(max(w - window[1] + step[1] - 1, 0) // step[1] + 1):
            bottom, right = min(i * step[0] + window[0], h), min(j * step[1] + window[1], w)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            part = y[:, :, top:bottom, left:right]
            if average == 'grid_probabilities':
                out = bilinear(net(part, upsample_logits=False).logits.softmax(1), size=part.shape[-2:])
            else:
                out = net(part).logits
            total[:, :, top:bottom, left:right] += out.softmax(1) if average == 'probabilities' else out
            count[top:bottom, left:right] += 1
    assert (count > 0).all()
    return total / count


@pytest.fixture(scope='module')
def net():
    return Net().eval()


# --- the protocol itself
@pytest.mark.parametrize('p', PROTOCOLS.values(), ids=PROTOCOLS)
def test_round_trip(p):
    again = EvalProtocol(**json.loads(json.dumps(asdict(p))))
    assert again == p and hash(again) == hash(p) and str(again) == str(p) and '\n' not in str(p)
    assert p.but() == p


def test_words_differ():
    "Two protocols that differ are told apart by their line."
    all_of = [
        *PROTOCOLS.values(),
        SWIN.but(flip=True),
        SWIN.but(step=(13, 13)),
        R50.but(keep_ratio=False),
        R50.but(average='probabilities'),
        SWIN.but(average='grid_probabilities'),
    ]
    assert len({str(p) for p in all_of}) == len(all_of)


@pytest.mark.parametrize(
    'parts,word',
    [
        (dict(scales=()), 'scales is empty'),
        (dict(scales=(1, 0)), 'above 0'),
        (dict(window=(8, 8), step=(8, 9)), 'leave gaps'),
        (dict(window=(8, 8), step=(0, 8)), r'step=\(0, 8\) must be'),
        (dict(step=(8, 8)), 'step without window'),
        (dict(resize=(8,)), '2 whole numbers'),
        (dict(resize=(0, 8)), 'height, width'),
        (dict(window=(8, 8, 8)), '2 whole numbers'),
        (dict(average='mean'), "average='mean' does not fit; average is 'probabilities'"),
        (dict(flip_pairs=[(1,)]), 'lists of 2 whole numbers'),
        (dict(flip_pairs=[(1, -2)]), 'pairs of class ids'),
    ],
    ids=str,
)
def test_nonsense(parts, word):
    with pytest.raises(ValueError, match=word):
        EvalProtocol(**parts)
    with pytest.raises(ValueError, match=word):
        SWIN.but(**{'step': None, 'window': None, **parts})


def test_published_sizes():
    "Worked out by hand from min(2048/longer, 512/shorter) and int(side·scale+.5)."
    ade, swin, city = [EvalProtocol(s, keep_ratio=True) for s in ((512, 2048), (640, 2560), (1024, 2048))]
    for size, want in (
        ((512, 683), (512, 683)),
        ((364, 500), (512, 703)),
        ((300, 400), (512, 683)),
        ((1600, 300), (2048, 384)),
        ((2048, 2048), (512, 512)),
        ((1, 9999), (1, 2048)),
    ):
        assert ade.fit(size) == want, size
    assert (
        swin.fit((512, 683)) == (640, 854)
        and swin.fit((480, 640)) == (640, 853)
        and city.fit((1024, 2048)) == (1024, 2048)
        and city.fit((128, 256)) == (1024, 2048)
    )
    assert (
        ade.fit((683, 512)) == (683, 512)
        and EvalProtocol((473, 473)).fit((1, 2)) == (473, 473)
        and EvalProtocol((2048, 512), keep_ratio=True).fit((364, 500)) == (512, 703)
    )


def test_a_new_window_brings_its_step():
    assert (
        SWIN.but(window=(30, 30)).step == (20, 20)
        and SWIN.but(window=None).step is None
        and SWIN.but(window=(30, 30), step=(7, 7)).step == (7, 7)
    )


# --- the engine
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('p', PROTOCOLS.values(), ids=PROTOCOLS)
@torch.no_grad()
def test_equal_to_a_plain_loop(net, p, size):
    image = picture(*size)
    want = by_hand(net, image, p, size)
    got = probabilities(net, image[None], p)
    assert got.shape == (1, K, *size) and torch.allclose(got.sum(1), torch.ones(()), atol=1e-4)
    assert torch.allclose(got, want.softmax(1) if p.average == 'logits' else want, atol=2e-6)
    other = (11, 23)
    assert torch.allclose(
        probabilities(net, image[None], p, other).argmax(1).float(), by_hand(net, image, p, other).argmax(1).float()
    )


def before(model, images, scales=(1.0,), flip=False, window=None, step=None):
    "The engine as it was before there were protocols."
    size, total = images.shape[-2:], 0
    if window and step is None:
        step = tuple(max(1, n * 2 // 3) for n in window)
    for scale in scales:
        new = tuple(max(1, round(n * scale)) for n in size)
        x = images.float() if new == tuple(size) else bilinear(images.float(), size=new)
        for mirror in (False, True) if flip else (False,):
            look = x.flip(-1) if mirror else x
            if window:
                out, seen = 0, look.new_zeros(1, 1, *look.shape[-2:])
                for top in window_starts(look.shape[-2], window[0], step[0]):
                    for left in window_starts(look.shape[-1], window[1], step[1]):
                        at = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                        p = model(look[at]).logits.float().softmax(1)
                        if isinstance(out, int):
                            out = p.new_zeros(len(look), p.shape[1], *look.shape[-2:])
                        out[at] += p
                        seen[at] += 1
                p = out / seen
            else:
                p = model(look).logits.float().softmax(1)
            total = total + bilinear(p.flip(-1) if mirror else p, size=size)
    return total / (len(scales) * (2 if flip else 1))


@pytest.mark.parametrize(
    'look',
    [
        dict(),
        dict(flip=True),
        dict(scales=(0.5, 1.0, 1.5), flip=True),
        dict(window=(16, 24)),
        dict(window=(16, 24), step=(8, 6), flip=True, scales=(1.0, 2.0)),
    ],
    ids=str,
)
@torch.no_grad()
def test_old_results_stay(look):
    "Where a scale makes whole pixels, nothing moved."
    model = build_segmentor('fcn', 'tiny', K, **SMALL).eval()
    images = torch.stack([picture(32, 44), picture(32, 44, 1)])
    assert torch.allclose(probabilities(model, images, **look), before(model, images, **look), atol=1e-6)


def test_whole_logits_take_one_step(net):
    "From the grid to the label, and not by way of the picture."
    image = picture(30, 47)
    with torch.no_grad():
        two = bilinear(
            net(bilinear(image[None].float(), size=R50.fit((30, 47))).round()).logits, size=(30, 47)
        ).softmax(1)
    one = probabilities(net, image[None], R50)
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize('framework', ['fcn', 'upernet'])
@torch.no_grad()
def test_a_real_model_takes_one_step_too(framework):
    torch.manual_seed(0)
    model = build_segmentor(framework, 'tiny', K, **SMALL).eval()
    x = picture(48, 64)[None]
    inner = model.head(model.backbone((x.float() - model.mean) / model.std)).logits
    assert inner.shape[-2:] != (48, 64)
    assert torch.allclose(
        probabilities(model, x, average='logits', size=(31, 17)), bilinear(inner, size=(31, 17)).softmax(1), atol=1e-5
    )


@pytest.mark.parametrize('pad_to', [1, 4])
@pytest.mark.parametrize('size', [(48, 64), (30, 47), (5, 9)], ids=str)
@torch.no_grad()
def test_softmax_on_the_grid_of_a_real_model(size, pad_to):
    "The authors' order: softmax where the network answers, then one resize to the label; where the image was padded, the padding is cut off on the way."
    torch.manual_seed(0)
    model = build_segmentor('fcn', 'tiny', K, **SMALL).eval()
    model.backbone.pad_to = pad_to
    x, (h, w) = picture(*size)[None], size
    model.head.classifier.logits.weight.mul_(
        4 / model(picture(48, 64)[None]).logits.std((2, 3)).mean()
    )  # nowhere sure, an untrained model has one answer in every order
    lack = (-w) % pad_to, (-h) % pad_to
    padded = F.pad((x.float() - model.mean) / model.std, (0, lack[0], 0, lack[1]))
    inner = model.head(model.backbone(padded)).logits.softmax(1)
    for label in size, (31, 17):
        want = (
            bilinear(bilinear(inner, size=padded.shape[-2:])[..., :h, :w], size=label)
            if any(lack)
            else bilinear(inner, size=label)
        )
        got = probabilities(model, x, average='grid_probabilities', size=label)
        assert torch.allclose(got, want, atol=1e-5) and torch.allclose(got.sum(1), torch.ones(()), atol=1e-5)
        assert not torch.allclose(got, probabilities(model, x, size=label), atol=1e-3)


def test_resize_is_bilinear_on_bytes():
    "Half-pixel centres, two pixels by two whatever the factor, whole numbers: OpenCV's INTER_LINEAR but for its rounding."
    seen = []

    class Spy(Net):
        def forward(self, images, size=None, upsample_logits=True):
            seen.append(images)
            return super().forward(images, size, upsample_logits)

    image = picture(20, 31)
    probabilities(Spy().eval(), image[None], EvalProtocol((7, 50)))
    (h, w), source = (7, 50), image.numpy().astype(float)

    def line(n, m):  # where each new pixel's centre lies among the old ones
        at = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, None)
        low = np.minimum(np.floor(at).astype(int), m - 1)
        return low, np.minimum(low + 1, m - 1), at - low

    (t, b, y), (l, r, x) = line(h, 20), line(w, 31)
    want = (source[:, t][:, :, l] * (1 - x) + source[:, t][:, :, r] * x) * (1 - y)[:, None] + (
        source[:, b][:, :, l] * (1 - x) + source[:, b][:, :, r] * x
    ) * y[:, None]
    got = seen[0][0].numpy()
    assert (got == got.round()).all() and np.abs(got - want).max() <= 0.5 + 1e-3


def test_mirror_symmetry(net):
    "Looking in the mirror as well, a mirrored picture has the mirrored answer, with left and right exchanged."
    image, p = picture(30, 47), EvalProtocol(flip=True, flip_pairs=((1, 2), (4, 5)), scales=(1.0, 2.0))
    a, b = probabilities(net, image[None], p), probabilities(net, image[None].flip(-1), p)
    assert torch.allclose(a, b.flip(-1)[:, [0, 2, 1, 3, 5, 4]], atol=1e-5)
    assert not torch.allclose(a, b.flip(-1), atol=1e-2)


def test_batch_is_one_by_one(net):
    images = torch.stack([picture(30, 47, i) for i in range(3)])
    for p in PROTOCOLS.values():
        assert torch.allclose(
            probabilities(net, images, p), torch.cat([probabilities(net, i[None], p) for i in images]), atol=1e-5
        )


def test_mode_and_state_are_left(net):
    model = build_segmentor('fcn', 'tiny', K, **SMALL).train()
    state = {n: x.clone() for n, x in model.state_dict().items()}
    probabilities(model, picture(30, 47)[None], MULTI)
    assert model.training and all(x.equal(state[n]) for n, x in model.state_dict().items())
    with pytest.raises(ValueError, match='RGB'):
        probabilities(model, picture(30, 47)[None, :2], MULTI)
    with pytest.raises(ValueError, match=r'classes 0\.\.5'):
        probabilities(model, picture(30, 47)[None], MULTI, flip_pairs=((0, 6),))
    assert model.training


# --- evaluation
@pytest.mark.parametrize('name', ['r50', 'multi', 'lip', 'exact', 'grid', 'grid_cut'])
@torch.no_grad()
def test_evaluate_is_a_loop(net, name):
    p, data, meter = PROTOCOLS[name], [(picture(*s), truth(*s)) for s in SIZES], Meter(K)
    for image, label in data:
        meter.update(by_hand(net, image, p, label.shape).argmax(1), label[None])
    got = evaluate(net, data, protocol=p)
    assert got.total.equal(meter.total) and got.per_image.sum((1, 2)).tolist() == [
        int((l != 255).sum()) for _, l in data
    ]
    assert got.scores()['miou'] == meter.scores()['miou']
    assert evaluate(net, data, 1, **asdict(p)).total.equal(meter.total)


def test_evaluate_batches_equal_singles(net):
    data = [(picture(30, 47, i), truth(30, 47, i)) for i in range(5)]
    assert evaluate(net, data, 3, protocol=SWIN).total.equal(evaluate(net, data, 1, protocol=SWIN).total)


def test_label_is_not_resized(net):
    "A net that knows the truth of each pixel has 100 % only if the label was left alone."

    class Knows(Net):
        def forward(self, images, size=None):
            classes = (images[:, 0] / 40).round().long()
            return SimpleNamespace(logits=F.one_hot(classes, K).movedim(-1, 1).float() * 20)

    label = truth(30, 47)
    image = torch.where(label == 255, 0, label * 40).byte().expand(3, 30, 47)
    assert evaluate(Knows().eval(), [(image, label)], protocol=EvalProtocol()).scores()['miou'] == 100
    assert evaluate(Knows().eval(), [(image, label)], protocol=EvalProtocol((15, 23))).scores()['miou'] < 60


def test_nothing_is_kept(net):
    "While a hundred pictures are judged, no more than a few answers are alive at a time."
    alive = []

    class Watched(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, i):
            if i % 20 == 19:
                alive.append(sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor))
            return picture(64, 64, i), truth(64, 64, i)

    evaluate(net, Watched(), protocol=R50)
    grown = alive[-1] - alive[0]
    assert grown <= 80 * (K * K) + 64 * 64 * K, alive  # the counts of each picture, and no picture


# --- the command
def run(capsys, *words):
    try:
        code = cli.main(['evaluate', '--device', 'cpu', '--quiet', *map(str, words)])
    except SystemExit as e:
        code = e.code  # of argparse, which prints the usage first
    out = capsys.readouterr()
    return code, out.out, out.err


def saved(folder, name, p=None, **about):
    torch.manual_seed(0)
    model = build_segmentor('fcn', 'tiny', LABEL_SPACES[name].num_classes, **SMALL)
    return save_model(
        model,
        folder,
        LABEL_SPACES[name],
        **({} if p is None else dict(protocol=json.loads(json.dumps(asdict(p))))),
        **about,
    )


OF = dict(
    ade20k=R50,
    cityscapes=EvalProtocol((32, 64), keep_ratio=True, average='logits'),
    coco_stuff_10k=SWIN,
    lip=EvalProtocol((37, 37), average='logits'),
)


@torch.no_grad()
def judged(folder, root, name, p, n=None):
    "Confusion by hand, straight from the files."
    model, space = load_model(folder)
    meter, rows = Meter(space.num_classes), DATASETS[name].load(root)
    for row in list(rows)[:n]:
        label = torch.from_numpy(read_mask(row['label'], space)).long()
        image = torch.from_numpy(read_image(row['image'])).permute(2, 0, 1)
        meter.update(probabilities(model, image[None], p).argmax(1), label[None])
    return meter


@pytest.mark.parametrize('name', LAYOUTS)
def test_one_command_and_the_dataset(name, tmp_path, capsys):
    root, model = layout(name, tmp_path), saved(tmp_path / 'model', name, OF[name])
    code, out, err = run(
        capsys, '--model', model, '--data', name, '--root', root, '--json', tmp_path / 'out' / 'scores.json'
    )
    assert (code, err) == (0, '')
    want, lines, row = (
        judged(model, root, name, OF[name]),
        out.splitlines(),
        json.loads((tmp_path / 'out' / 'scores.json').read_text()),
    )
    never = 'are never found' in out
    assert len(lines) == LABEL_SPACES[name].num_classes + 3 + never and lines[-2] == f'protocol: {OF[name]}'
    assert (
        lines[-3].split()[:2] == ['mIoU', f'{want.scores()["miou"]:.2f}']
        and f'{name}, 3 unseen' in lines[-3]
        and f'has {DATASETS[name].pictures}' in lines[-3]
    )
    assert EvalProtocol(**row['protocol']) == OF[name] and row['pictures'] == 3 and row['data'] == name
    assert list(row['iou']) == list(LABEL_SPACES[name].classes) and {'torch', 'device', 'date', 'version'} <= set(row)
    for got, v in zip(row['iou'].values(), want.scores()['iou']):
        assert got is None if v != v else abs(got - v) < 1e-3
    assert abs(row['miou'] - want.scores()['miou']) < 1e-3


def test_flags_change_one_part(tmp_path, capsys):
    root, model = layout('lip', tmp_path), saved(tmp_path / 'model', 'lip', OF['lip'])
    own = OF['lip']
    for words, p in (
        (('--flip',), own.but(flip=True, flip_pairs=DATASETS['lip'].flip_pairs)),
        (('--size', '24x20'), own.but(resize=(24, 20))),
        (('--size', 'none'), own.but(resize=None)),
        (('--size', '20x60', '--keep-ratio'), own.but(resize=(20, 60), keep_ratio=True)),
        (('--scales', 0.5, 1), own.but(scales=(0.5, 1))),
        (('--window', 16), own.but(window=(16, 16))),
        (('--window', '16x12', '--step', 8), own.but(window=(16, 12), step=(8, 8))),
        (('--average', 'probabilities'), own.but(average='probabilities')),
    ):
        code, out, err = run(capsys, '--model', model, '--data', 'lip', '--root', root, *words)
        assert (code, err) == (0, '') and out.splitlines()[-1] == f'protocol: {p}', words
        assert out.splitlines()[-2].split()[1] == f'{judged(model, root, "lip", p).scores()["miou"]:.2f}'
    bounds = saved(tmp_path / 'bounds', 'lip', OF['lip'].but(keep_ratio=True))
    assert (
        '; whole' in (out := run(capsys, '--model', bounds, '--data', 'lip', '--root', root, '--size', 24)[1])
        and 'resized to 24x24' in out
    )  # a size is a size
    slides = saved(tmp_path / 'slides', 'lip', LIP)
    for words, p in ((('--window', 'none'), LIP.but(window=None)), (('--no-flip',), LIP.but(flip=False))):
        assert (
            run(capsys, '--model', slides, '--data', 'lip', '--root', root, *words)[1].splitlines()[-1]
            == f'protocol: {p}'
        )


def test_limit_and_split(tmp_path, capsys):
    root, model = layout('ade20k', tmp_path), saved(tmp_path / 'model', 'ade20k', R50)
    code, out, err = run(capsys, '--model', model, '--data', 'ade20k', '--root', root, '--limit', 2)
    assert (
        code == 0
        and 'the first 2 of 3' in out
        and out.splitlines()[-2].split()[1] == f'{judged(model, root, "ade20k", R50, 2).scores()["miou"]:.2f}'
    )
    assert 'the first' not in run(capsys, '--model', model, '--data', 'ade20k', '--root', root, '--limit', 99)[1]
    code, out, err = run(capsys, '--model', model, '--data', 'ade20k', '--root', root, '--split', 'train')
    assert code == 0 and '(train)' in out


def test_without_a_protocol(tmp_path, capsys):
    "The whole picture once, in the size of training if that is known."
    root = layout('ade20k', tmp_path)
    assert (
        'images as they are; whole image; probabilities'
        in run(capsys, '--model', saved(tmp_path / 'a', 'ade20k'), '--data', 'ade20k', '--root', root)[1]
    )
    assert (
        'resized to 24x20; whole image'
        in run(capsys, '--model', saved(tmp_path / 'b', 'ade20k', size=(24, 20)), '--data', 'ade20k', '--root', root)[1]
    )


@pytest.mark.parametrize(
    'words,said',
    [
        (('--data', 'ade20k'), ('needs --root', 'ADEChallengeData2016.zip', 'non-commercial')),
        (
            ('--data', 'ade20k', '--root', 'ROOT/../../nowhere/at/all'),
            ('images/validation/ (images)', 'data.csail.mit.edu'),
        ),
        (('--data', 'ade20k', '--root', 'ROOT/images'), ('has no images/validation', 'has them: give that')),
        (('--data', 'ade20k', '--root', 'ROOT', '--split', 'test'), ("no split 'test'; there are train and val",)),
        (('--data', 'ade20k', '--root', 'ROOT', '--limit', 0), ('argument --limit',)),
        (('--data', 'ade20k', '--root', 'ROOT', '--window', 8, '--step', 9), ('leave gaps',)),
        (('--data', 'ade20k', '--root', 'ROOT', '--step', 9), ('step without window',)),
        (('--data', 'ade20k', '--root', 'ROOT', '--scales', 0), ('above 0',)),
        (('--data', 'lip', '--root', 'ROOT'), ("label set 'ade20k' (150 classes), not for 'lip' (20)",)),
        (
            (
                '--data',
                'cityscapes',
            ),
            ("not for 'cityscapes' (19)",),
        ),
    ],
    ids=lambda x: ' '.join(map(str, x))[:40],
)
def test_what_a_user_may_get_wrong(words, said, tmp_path, capsys):
    root, model = layout('ade20k', tmp_path), saved(tmp_path / 'model', 'ade20k', R50)
    code, out, err = run(capsys, '--model', model, *[str(w).replace('ROOT', str(root)) for w in words])
    assert code == 2 and err.strip().splitlines()[-1].startswith('idrnet evaluate: error: ')
    for word in said:
        assert word in err, err


def test_a_protocol_of_the_future(tmp_path, capsys):
    root, model = layout('ade20k', tmp_path), saved(tmp_path / 'model', 'ade20k')
    loaded, _ = load_model(model)
    loaded.about['protocol'] = dict(telescope=True)  # as a newer version may write it
    loaded.save_pretrained(model)
    code, out, err = run(capsys, '--model', model, '--data', 'ade20k', '--root', root)
    assert code == 2 and 'protocol saved with the model' in err and 'telescope' in err


def test_a_broken_file_is_named(tmp_path, capsys):
    root, model = layout('coco_stuff_10k', tmp_path), saved(tmp_path / 'model', 'coco_stuff_10k', SWIN)
    mat = root / 'annotations' / 'b.mat'
    mat.write_bytes(mat.read_bytes()[:150])
    code, out, err = run(capsys, '--model', model, '--data', 'coco_stuff_10k', '--root', root)
    assert code == 2 and 'b.mat' in err and 'cut short' in err


def test_camvid_and_world_as_ever(tmp_path, capsys):
    "Pictures and labels resized together to the size of training; a protocol saved with the model is followed instead."
    space = LABEL_SPACES['camvid']
    for split in 'train', 'test':
        for d in (split, f'{split}annot'):
            (tmp_path / 'c' / d).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(picture(30, 40, i).permute(1, 2, 0).numpy()).save(tmp_path / 'c' / split / f'{i}.png')
            Image.fromarray(truth(30, 40, i).clamp(max=11).byte().numpy()).save(
                tmp_path / 'c' / f'{split}annot' / f'{i}.png'
            )
    model = saved(tmp_path / 'm', 'camvid', size=(15, 20))
    out = run(capsys, '--model', model, '--data', 'camvid', '--root', tmp_path / 'c')[1]
    assert '3 unseen images (15x20' in out and 'protocol: images as they are' in out
    assert (
        '3 unseen images (24x24'
        in run(capsys, '--model', model, '--data', 'camvid', '--root', tmp_path / 'c', '--size', 24)[1]
    )
    model = saved(tmp_path / 'p', 'camvid', OF['cityscapes'])
    assert (
        f'protocol: {OF["cityscapes"]}'
        in run(capsys, '--model', model, '--data', 'camvid', '--root', tmp_path / 'c')[1]
    )
    assert space.num_classes == 11


def test_predict_follows_the_protocol(tmp_path, capsys):
    model = saved(tmp_path / 'model', 'lip', LIP)
    image = picture(33, 21)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / 'a.png')
    for words, p in (((), LIP), (('--size', 20, '--window', 'none'), LIP.but(resize=(20, 20), window=None))):
        assert (
            cli.main(
                [
                    'predict',
                    '--model',
                    str(model),
                    '--device',
                    'cpu',
                    '--out',
                    str(tmp_path / 'out'),
                    str(tmp_path / 'a.png'),
                    *map(str, words),
                ]
            )
            == 0
        )
        want = probabilities(load_model(model)[0], image[None], p).argmax(1)[0]
        assert np.array_equal(np.array(Image.open(tmp_path / 'out' / 'a_index.png')), want.numpy())


# --- real pictures
@pytest.mark.parametrize(
    'name,folder', [('ade20k', 'ADEChallengeData2016'), ('cityscapes', 'cityscapes'), ('lip', 'LIP')]
)
def test_real_pairs(name, folder, tmp_path, capsys):
    root, model = real('layouts') / folder, saved(tmp_path / 'model', name, OF[name])
    code, out, err = run(capsys, '--model', model, '--data', name, '--root', root)
    assert (code, err) == (0, '') and out.splitlines()[-2].split()[
        1
    ] == f'{judged(model, root, name, OF[name]).scores()["miou"]:.2f}'
