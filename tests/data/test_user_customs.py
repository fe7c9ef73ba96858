"What a reviewer tried with data of other people's customs: class lists, palettes, images that hold little."

import struct
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from idrnet_nb.data.validate import DataFault, Report, check_data, check_parts, raise_faults
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.readers import decode_image
from idrnet_nb.data.pairing import folder_pairs
from idrnet_nb.data.class_lists import space_from_file
from idrnet_nb.data.splits import hold_out


def listed(tmp_path, text, name='classes.txt'):
    (tmp_path / name).write_text(text, encoding='utf-8')
    return space_from_file(tmp_path / name)


@pytest.mark.parametrize(
    'text,words',
    [
        ('names:\n  0: a\n  1: b\n', r"line 1: 'names:' ends with a colon"),
        ('0: a\n1: b\n', 'write a, 0'),
        ('a|0\nb|1\n', 'write a, 0'),
        ('0|a\n1|b\n', 'write a, 0'),
        ('[0] a\n[1] b\n', 'write a, 0'),
        ('| a | 0 |\n| b | 1 |\n', 'write a, 0'),
        ('a，0\nb，1\n', 'write a, 0'),
        ('a -> 0\nb -> 1\n', 'write a, 0'),
        ('0 -> a\n1 -> b\n', 'write a, 0'),
        ('a 255 0 0\nb 0 255 0\n', 'write a, #ff0000'),
        ('255 0 0 a\n0 255 0 b\n', 'write a, #ff0000'),
        ('a: (255,0,0)\nb: (0,255,0)\n', 'write a, #ff0000'),
        ('background:0,0,0::\ncat:128,0,0::\n', 'write background, #000000'),
        ('64 128 64\tAnimal\n192 0 128\tArchway\n', 'write Animal, #408040'),
        ('a,0,255,0,0\nb,1,0,255,0\n', 'write 0, #ff0000'),
        ('id name\n0 a\n1 b\n', 'seems to be a header'),
        ('Pixel Value, Class\n0, a\n1, b\n', 'seems to be a header'),
        ('class_id,class_name\n0,a\n', 'seems to be a header'),
        ('name,red,green,blue\na,255,0,0\n', 'seems to be a header'),
        ('a, b, c', 'write one name a line'),
        ("['a', 'b']", 'write one name a line'),
        ('a mirror=b\nb\n', 'a comma before it'),
        ('// mine\na\nb\n', 'begin it with #'),
        ('#ff0000 a\n', 'are comments'),
        ('a\nb\na\n', r"line 3: 'a' is named twice \(line 1 as well\)"),
    ],
)
def test_a_class_list_of_another_form_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        listed(tmp_path, text)


@pytest.mark.parametrize(
    'text,names',
    [
        ('lane 1\nlane 2\n', ('lane 1', 'lane 2')),
        ('0\n1\n', ('0', '1')),
        ('3d print\n2d print\n', ('3d print', '2d print')),
        ('red car\nblue car\n', ('red car', 'blue car')),
        ('red\ngreen\nblue\n', ('red', 'green', 'blue')),
        ('train\nstuff\n', ('train', 'stuff')),
        ('code\nidx\n', ('code', 'idx')),
        ('person/head\nperson|arm\n', ('person/head', 'person|arm')),
        ('background\nclass 1\nclass 2\n', ('background', 'class 1', 'class 2')),
    ],
)
def test_plain_names_stay_names(tmp_path, text, names):
    assert listed(tmp_path, text).classes == names


def test_label2id_within_a_config_is_read(tmp_path):
    assert listed(tmp_path, '{"label2id": {"a": 0, "b": 3}}', 'c.json').raw_to_train == {255: 255, 0: 0, 3: 1}


def test_a_class_list_in_another_encoding_is_named(tmp_path):
    (tmp_path / 'c.txt').write_bytes('Straße\n'.encode('latin1'))
    with pytest.raises(ValueError, match="c.txt.*not in UTF-8; save it as UTF-8"):
        space_from_file(tmp_path / 'c.txt')


RNG = np.random.default_rng(0)
MASK = np.zeros((20, 30), np.uint8)
MASK[5:15, 4:12], MASK[8:18, 15:28] = 1, 2
RGB = RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)


def made(folder, images, masks, lines='a\nb\nc\n'):
    "A set of images and masks (arrays, or images of PIL), and its label space."
    for part, those in dict(i=images, m=masks).items():
        (folder / part).mkdir(parents=True)
        for j, x in enumerate(those):
            (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(folder / part / f'p{j}.png')
    return folder_pairs(folder / 'i', folder / 'm'), listed(folder, lines)


def kinds(found):
    return {kind for kind, *_ in found}


def painted(ids, colours):
    "A mask with a palette."
    im = Image.fromarray(ids).convert('P')
    im.putpalette([x for c in colours for x in c])
    return im


RED, GREEN, BLACK, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (0, 0, 255)


def test_palettes_of_another_order_are_named(tmp_path):
    "The same painted masks, saved with palettes of different order: ids differ from file to file."
    turned = (2 - MASK).astype(np.uint8)
    masks = painted(MASK, (BLACK, RED, GREEN)), painted(turned, (GREEN, RED, BLACK))
    report = check_data(*made(tmp_path / 'two', [RGB, 255 - RGB], masks), progress=False)
    assert kinds(report.faults) == {'palettes differ'} and 'p0.png' in report.faults[0][2], report.faults
    with pytest.raises(DataFault, match='palettes differ'):
        raise_faults(dict(train=report))
    list_of_colours = 'a, #000000\nb, #ff0000\nc, #00ff00\n'
    report = check_data(*made(tmp_path / 'list', [RGB], masks[1:], list_of_colours), progress=False)
    assert kinds(report.faults) == {'palettes differ'} and "gives this colour to 'c'" in report.faults[0][2], (
        report.faults
    )


@pytest.mark.parametrize(
    'palettes,lines',
    [
        ([(BLACK, RED, GREEN)] * 2, 'a, #000000\nb, #ff0000\nc, #00ff00\n'),
        ([(BLACK, RED, GREEN)] * 2, 'a\nb\nc\n'),
        ([(BLACK, RED, GREEN), [(i, i, i) for i in range(256)]], 'a\nb\nc\n'),  # grey, as some tools write ids
        ([(BLACK, RED, GREEN), [BLACK] * 256], 'a\nb\nc\n'),  # a palette that says nothing
        ([(BLACK, RED, GREEN), (BLUE, RED, (9, 9, 9))], 'a\nb\nc\n'),
    ],
)
def test_palettes_that_agree_are_no_fault(tmp_path, palettes, lines):
    report = check_data(
        *made(tmp_path / 'x', [RGB, 255 - RGB], [painted(MASK, p) for p in palettes], lines), progress=False
    )
    assert report.ok, report.faults


def test_blank_and_dark_images_are_no_faults(tmp_path):
    "White pages, a clear sky and a night are data; black ones, and such as hold hardly any bits, are not."
    white, sky, paper = np.full_like(RGB, 255), np.full_like(RGB, (120, 180, 250)), (252 + RGB % 3).astype(np.uint8)
    parts = dict(train=[white, white, sky, paper, RGB // 5], unseen=[white, sky])
    rows = {
        name: made(tmp_path / name, images, [np.roll(MASK, j) for j in range(len(images))])
        for name, images in parts.items()
    }
    reports = check_parts({name: r for name, (r, _) in rows.items()}, rows['train'][1], progress=False)
    assert reports['train'].ok and reports['unseen'].ok, [r.faults for r in reports.values()]
    assert kinds(reports['train'].remarks) == {'nearly empty', 'dark'}
    report = check_data(*made(tmp_path / 'black', [RGB * 0, RGB // 50], [MASK, MASK]), progress=False)
    assert [kind for kind, *_ in report.faults] == ['nearly empty'] * 2


def test_what_of_an_image_is_not_read_is_said(tmp_path):
    half = np.dstack([RGB, np.where(MASK, 255, 90).astype(np.uint8)])
    report = check_data(*made(tmp_path / 'alpha', [half], [MASK]), progress=False)
    assert (
        report.ok
        and [r[0] for r in report.remarks] == ['not all read']
        and '% of it is transparent' in report.remarks[0][2]
    )
    report = check_data(*made(tmp_path / 'opaque', [np.dstack([RGB, RGB[..., 0] * 0 + 255])], [MASK]), progress=False)
    assert not report.remarks


def test_further_channels_of_a_satellite_tile_are_said(tmp_path):
    "Red, green, blue and near infrared in one TIFF file, as the rest of the world writes them."
    tile = np.dstack([RGB, RGB[..., :1]])
    entries = [
        (256, 3, [30]),
        (257, 3, [20]),
        (258, 3, [8] * 4),
        (259, 3, [1]),
        (262, 3, [2]),
        (273, 4, [0]),
        (277, 3, [4]),
        (278, 3, [20]),
        (279, 4, [tile.size]),
        (338, 3, [0]),
    ]
    bits = 8 + 2 + 12 * len(entries) + 4
    head = b'II*\0' + struct.pack('<IH', 8, len(entries))
    for tag, kind, values in entries:
        if tag == 258:
            values, kind, n = [bits], 4, 4
        else:
            n = 1
        if tag == 273:
            values = [bits + 8]
        head += struct.pack('<HHII', tag, 3 if tag == 258 else kind, n, values[0])
    file = tmp_path / 'tile.tif'
    file.write_bytes(head + struct.pack('<I4H', 0, 8, 8, 8, 8) + tile.tobytes())
    got = decode_image(file)
    assert np.array_equal(got.rgb, RGB) and got.left_out == '3 of its 4 channels are read'


def two(tmp_path, name, masks):
    return made(tmp_path / name, [np.roll(RGB, j) for j in range(len(masks))], masks, 'background\nobject\n')


def test_masks_of_0_and_255_are_named_in_every_part(tmp_path):
    "The object is 1 where it is learnt, and 255 where it is judged, or in half of the masks: it would be void there."
    ones = [(np.roll(MASK, j, 1) == 1).astype(np.uint8) for j in range(4)]
    rows, space = two(tmp_path, 'train', ones)
    other, _ = two(tmp_path, 'unseen', [m * 255 for m in ones])
    assert check_parts(dict(train=rows), space, progress=False)['train'].ok
    for parts in dict(train=rows, unseen=other), dict(unseen=other):
        with pytest.raises(DataFault, match='unseen, ignored id.*background.*write the line object, 255'):
            raise_faults(check_parts(parts, space, progress=False), allow=('class without a pixel',))
    report = check_data(*two(tmp_path, 'mixed', [*ones[:2], ones[2] * 255, ones[3] * 255]), progress=False)
    assert kinds(report.faults) == {'ignored id'} and 'the 2 masks that have it' in report.faults[0][2], report.faults
    assert Report(**report.to_json()).to_json() == report.to_json()


def test_rims_and_absent_classes_are_no_such_fault(tmp_path):
    "Borders of 255 as in PASCAL VOC; a part without a class; and ids that the list says are ignored."
    rims = [np.where(np.roll(MASK, j, 0) == 2, 255, np.roll(MASK, j, 0)).astype(np.uint8) for j in range(3)]
    rims = [np.where(m == 255, np.where(RGB[..., 0] < 60, 255, 0), m).astype(np.uint8) for m in rims]
    rows, space = made(tmp_path / 'train', [np.roll(RGB, j) for j in range(3)], [*rims[:2], MASK])
    other, _ = made(tmp_path / 'unseen', [255 - RGB], rims[2:])
    assert all(r.ok for r in check_parts(dict(train=rows, unseen=other), space, progress=False).values())
    said = listed(tmp_path, 'background\nobject\nvoid, 255\n')
    rows, _ = two(tmp_path, 'said', [np.where(MASK == 1, 255, 0).astype(np.uint8), (MASK == 2).astype(np.uint8)])
    assert check_data(rows, said, progress=False).ok


def test_an_oversampled_list_is_held_out_image_by_image(tmp_path):
    "The same pair several times must not part into training and unseen images; without such, the lot is as it was."
    rows, _ = made(tmp_path, [np.roll(RGB, j) for j in range(10)], [MASK] * 10)
    plain = hold_out(rows, 0.2)
    assert plain[1]['id'] == [rows['id'][i] for i in sorted(np.random.default_rng(0).permutation(10)[:2].tolist())]
    thrice = rows.select([*range(10), *range(10), *range(10)])
    for seed in range(5):
        train, unseen = hold_out(thrice, 0.3, seed)
        assert not {*train['id']} & {*unseen['id']} and len(unseen) == 9 and len(train) == 21
    with pytest.raises(ValueError, match='in 1 groups that stay together'):
        hold_out(rows.select([0, 0, 0, 0]), 0.5)


def test_copies_of_an_image_are_held_out_together(tmp_path):
    "Stanford Background has three photographs twice: a lot of ours must not part them, as check and training then refuse them."
    rows, _ = made(tmp_path, [np.roll(RGB, j // 2) for j in range(20)], [MASK] * 20)
    for seed in range(8):
        train, unseen = hold_out(rows, 0.3, seed)
        contents = [{Path(r['image']['path']).read_bytes() for r in part} for part in (train, unseen)]
        assert not contents[0] & contents[1] and len(train) + len(unseen) == 20 and len(unseen) == 6


@pytest.mark.parametrize('form', ['RGB', 'RGBA', 'transparent'])
def test_masks_drawn_in_colours_are_read_as_they_are(tmp_path, form):
    "A class list with a colour for each class reads RGB and RGBA; alpha 0 is a colour of its own."
    colours = np.array([BLACK, RED, GREEN], np.uint8)[MASK]
    alpha = np.full((*MASK.shape, 1), 255, np.uint8)
    if form != 'RGB':
        colours = np.concatenate([colours, alpha], -1)
    first = '#000000'
    if form == 'transparent':
        colours[MASK == 0] = (9, 9, 9, 0)
        first = 'transparent'
    rows, space = made(tmp_path, [RGB], [colours], f'a, {first}\nb, #ff0000\nc, #00ff00\n')
    report = check_data(rows, space, progress=False)
    assert report.ok, report.faults
    assert report.pixels == np.bincount(MASK.ravel(), minlength=3).tolist()
    assert np.array_equal(SegmentationDataset(rows, space)[0][1].numpy(), MASK)


def test_colours_that_no_class_has_are_named(tmp_path):
    "The fault names file, colours and pixels; void, #rrggbb ignores a colour, and no id seems to be much ignored."
    colours = np.array([BLACK, RED, GREEN], np.uint8)[MASK]
    rows, space = made(tmp_path, [RGB], [colours], 'a, #000000\nb, #ff0000\n')
    ((kind, place, said),) = [f for f in check_data(rows, space, progress=False).faults if f[0] == 'unseen colours']
    assert '#00ff00' in said and f'({(MASK == 2).sum()} pixels)' in said and 'void, #rrggbb' in said
    (tmp_path / 'classes.txt').write_text('a, #000000\nb, #ff0000\nvoid, #00ff00\n')
    report = check_data(rows, space_from_file(tmp_path / 'classes.txt'), progress=False)
    assert report.ok and report.void == (MASK == 2).sum()


def test_a_list_without_colours_says_how_to_give_them(tmp_path):
    "A mask drawn in colours is refused, with the line to write."
    colours = np.array([BLACK, RED, GREEN], np.uint8)[MASK]
    rows, space = made(tmp_path, [RGB], [colours], 'a\nb\nc\n')
    assert 'NAME, #rrggbb' in check_data(rows, space, progress=False).faults[0][2]
