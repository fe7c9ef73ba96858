"""Reading images and masks: orientation tags, damaged files, numbers that would become black or white, ids that a space does not know."""

import io, pickle, subprocess, sys, warnings, zlib
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image, ImageCms, ImageOps
from scipy.io import savemat
from torch.utils.data import DataLoader
from idrnet_nb.data import hub_datasets
from idrnet_nb.data import transforms
from idrnet_nb.data.validate import check_data
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.readers import (
    BadFile,
    DecodedImage,
    decode_image,
    decode_mask,
    read_mask,
    read_image,
    set_max_pixels,
    apply_orientation,
)
from idrnet_nb.data.dataset import SegmentationDataset, match_pair
from idrnet_nb.data.pairing import folder_pairs
from idrnet_nb.data.class_lists import ids_from_colours

SPACE = LABEL_SPACES['camvid']
ROOT = Path(__file__).resolve().parents[2]


def encoded(im, kind='PNG', **kw):
    "A file in memory, as the Hub's rows have it."
    im.save(file := io.BytesIO(), kind, **kw)
    return file.getvalue()


def held(content, name='held.png'):
    return dict(path=name, bytes=content)


def tag(n):
    exif = Image.Exif()
    exif[274] = n
    return exif


def chunk(kind, content):
    return len(content).to_bytes(4, 'big') + kind + content + zlib.crc32(kind + content).to_bytes(4, 'big')


def with_chunk(png, kind, content):
    return png[:33] + chunk(kind, content) + png[33:]  # behind IHDR


SMOOTH = np.add.outer(np.arange(20) * 7, np.arange(30) * 3).astype(np.uint8)
RGB = np.dstack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]])
MASK = np.kron(np.arange(6).reshape(2, 3), np.ones((10, 10))).astype(np.uint8)


@pytest.fixture
def limit():
    "Pillow's limit of pixels, put back."
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


# --- orientation
KINDS = dict(PNG={}, JPEG=dict(quality=100, subsampling=0), TIFF={}, WEBP=dict(lossless=True))


@pytest.mark.parametrize('n', range(10))  # 0 and 9 are no tags
@pytest.mark.parametrize('kind', KINDS)
def test_images_follow_their_tag(kind, n, tmp_path):
    source = tmp_path / f'x.{kind.lower()}'
    source.write_bytes(encoded(Image.fromarray(RGB), kind, exif=tag(n), **KINDS[kind]))
    want = np.array(ImageOps.exif_transpose(Image.open(source)))
    for s in source, held(source.read_bytes()):
        got = decode_image(s)
        assert (
            np.array_equal(got.rgb, want)
            and got.tag == (n if 1 < n < 9 else 1)
            and got.rgb.flags.c_contiguous
            and got.rgb.flags.writeable
        )
    assert want.shape[:2] == ((30, 20) if 4 < n < 9 else (20, 30))


@pytest.mark.parametrize('n', range(10))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_masks_follow_their_own_tag(kind, n):
    got = decode_mask(held(encoded(Image.fromarray(MASK), kind, exif=tag(n))), SPACE)
    assert np.array_equal(got.ids, apply_orientation(MASK, n if n < 9 else 1)) and got.tag == (n if 1 < n < 9 else 1)


def write_pair(root, image, mask, image_tag=1, mask_tag=1, kind='JPEG', name='a'):
    for d in 'images', 'labels':
        (root / d).mkdir(parents=True, exist_ok=True)
    (root / 'images' / f'{name}.{kind.lower()}').write_bytes(
        encoded(Image.fromarray(image), kind, exif=tag(image_tag), **KINDS[kind])
    )
    (root / 'labels' / f'{name}.png').write_bytes(encoded(Image.fromarray(mask), exif=tag(mask_tag)))
    return folder_pairs(root / 'images', root / 'labels')


def grey_of(mask):
    return np.dstack([mask * 40] * 3)


@pytest.mark.parametrize('n', range(1, 9))
@pytest.mark.parametrize('kind', KINDS)
def test_both_tagged_alike(tmp_path, n, kind):
    "The image was turned and the mask was not: 77 % of the pixels agreed after half a turn."
    rows = write_pair(tmp_path, grey_of(MASK), MASK, n, n, kind)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image, label = SegmentationDataset(rows, SPACE)[0]
    assert (image[0].float() / 40).round().eq(label).all() and np.array_equal(label.numpy(), apply_orientation(MASK, n))


@pytest.mark.parametrize('n', range(2, 9))
def test_a_mask_drawn_on_what_is_seen(tmp_path, n):
    pairs = SegmentationDataset(write_pair(tmp_path, grey_of(MASK), apply_orientation(MASK, n), n), SPACE)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        image, label = pairs[0]
    assert (image[0].float() / 40).round().eq(label).all()
    assert len(said) == (n < 5)  # of a half turn, sizes tell nothing


@pytest.mark.parametrize('n', range(5, 9))
def test_a_mask_drawn_on_stored_pixels(tmp_path, n):
    "Its size tells: it is turned with the image."
    rows = write_pair(tmp_path, grey_of(MASK), MASK, n)
    image, label = SegmentationDataset(rows, SPACE)[0]
    assert image.shape[1:] == (30, 20) and (image[0].float() / 40).round().eq(label).all()


@pytest.mark.parametrize('a,b', [(1, 3), (3, 1), (2, 1), (4, 1), (3, 2), (6, 8), (5, 6), (1, 2)])
def test_what_cannot_be_told_is_said_once(tmp_path, a, b):
    for name in 'abc':
        rows = write_pair(
            tmp_path,
            apply_orientation(grey_of(MASK), {6: 8, 8: 6}.get(a, a)),
            apply_orientation(MASK, {6: 8, 8: 6}.get(b, b)),
            a,
            b,
            name=name,
        )
    pairs = SegmentationDataset(rows, SPACE)
    with pytest.warns(UserWarning) as said:
        items = [pairs[i] for i in range(3)]
    assert len(said) == 1 and all(
        w in str(said[0].message)
        for w in ('a.jpeg', 'a.png', f'tag {max(a, b)}', 'stored pixels', 'exif_transpose', 'check-data')
    )
    assert all((x[0].float() / 40).round().eq(y).all() for x, y in items)  # by the standard: each follows its own tag
    found = match_pair(decode_image(rows[0]['image']), decode_mask(rows[0]['label'], SPACE), rows[0])
    assert found.turned == 'unclear' and 'save both' in found.doubt


def test_square_images_do_not_tell(tmp_path):
    pairs = SegmentationDataset(write_pair(tmp_path, RGB[:, :20], MASK[:, :20], 6), SPACE)
    with pytest.warns(UserWarning, match='sizes do not tell'):
        pairs[0]


def test_a_stale_tag_of_a_mask(tmp_path):
    "Only the stored pixels fit: the tag of the mask, or that of the image, is not true of the other."
    for a, b in (1, 6), (1, 8), (3, 5):
        image, label = SegmentationDataset(write_pair(tmp_path, grey_of(MASK), MASK, a, b), SPACE)[0]
        assert image.shape[1:] == (20, 30) and (image[0].float() / 40).round().eq(label).all()


def test_sizes_that_differ_whatever_the_tags(tmp_path):
    for a, b in (6, 1), (1, 6), (6, 6), (3, 1):
        with pytest.raises(BadFile, match='a.jpeg.* is .*a.png.* is') as e:
            SegmentationDataset(write_pair(tmp_path, RGB, MASK[:15], a, b), SPACE)[0]
        assert e.value.kind == 'sizes differ'


def test_doubts_cross_workers(tmp_path):
    for name in 'abcd':
        rows = write_pair(tmp_path, grey_of(MASK), MASK, 3, name=name)
    pairs = SegmentationDataset(rows, SPACE)
    list(DataLoader(pairs, num_workers=2))
    assert bool(pairs.doubted)  # said by one worker, for all
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pairs[0]


# --- damaged files
@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_a_broken_block_of_exif(tmp_path):
    "Its pixels are sound; the tag in it is lost, and the error came without a name and ended check-data."
    for content in (
        b'',
        b'II*',
        b'no tiff at all',
        b'MM\0*\0\0\0\x08\xff\xff',
        tag(6).tobytes()[6:20],
        b'II*\0\xff\xff\xff\xff',
    ):
        rows = write_pair(tmp_path, RGB, MASK, kind='PNG')
        path = tmp_path / 'images' / 'a.png'
        path.write_bytes(with_chunk(encoded(Image.fromarray(RGB)), b'eXIf', content))
        try:
            assert np.array_equal(read_image(path), RGB)
        except BadFile as e:
            assert 'a.png' in str(e)
        check_data(rows, SPACE, progress=False)
        mask = with_chunk(encoded(Image.fromarray(MASK)), b'eXIf', content)
        try:
            read_mask(held(mask, 'm.png'), SPACE)
        except BadFile as e:
            assert 'm.png' in str(e)
    path.write_bytes(with_chunk(encoded(Image.fromarray(RGB)), b'eXIf', b'no tiff at all'))
    with pytest.raises(BadFile, match=r"a\.png' cannot be read: .*broken \(SyntaxError"):
        read_image(path)
    assert check_data(rows, SPACE, progress=False).kinds() == {'broken': 1}
    write_pair(tmp_path, RGB, MASK, kind='PNG', name='b')
    pairs = SegmentationDataset(
        folder_pairs(tmp_path / 'images', tmp_path / 'labels'), SPACE, augment=Augment((8, 8)), on_unreadable='skip'
    )
    with pytest.warns(UserWarning, match=r'skipped: .*a\.png'):
        pairs[0]


PALETTE = Image.fromarray(RGB).quantize(16)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()[:300]
WHOLE = dict(
    png=encoded(Image.fromarray(RGB), exif=tag(6), icc_profile=ICC),
    palette=encoded(PALETTE, transparency=bytes(range(16))),
    t=encoded(Image.fromarray(RGB), transparency=(1, 2, 3)),
    deep=encoded(Image.fromarray(SMOOTH.astype(np.uint16) << 8)),
    jpeg=encoded(Image.fromarray(RGB), 'JPEG', exif=tag(6), icc_profile=ICC),
    cmyk=encoded(Image.new('CMYK', (9, 9)), 'JPEG'),
    tiff=encoded(Image.fromarray(RGB), 'TIFF', exif=tag(6)),
    lzw=encoded(PALETTE, 'TIFF', compression='tiff_lzw'),
    stack=encoded(PALETTE, 'TIFF', save_all=True, append_images=[PALETTE]),
    lab=encoded(
        ImageCms.profileToProfile(
            Image.fromarray(RGB),
            ImageCms.createProfile('sRGB'),
            ImageCms.createProfile('LAB'),
            outputMode='LAB',
        ),
        'TIFF',
    ),
    webp=encoded(Image.fromarray(RGB), 'WEBP', exif=tag(6)),
    bmp=encoded(Image.fromarray(RGB), 'BMP'),
    gif=encoded(PALETTE, 'GIF', save_all=True, append_images=[PALETTE.rotate(90)]),
)


def damaged(whole, rng):
    "Cut, or some bytes changed anywhere, in the head, or between the chunks of a PNG with its sums put right."
    out, kind = bytearray(whole), rng.integers(4)
    if kind == 0:
        return whole[: rng.integers(len(whole))]
    for _ in range(rng.integers(1, 5)):
        out[rng.integers(len(out) if kind == 1 else min(len(out), 120))] = rng.integers(256)
    if kind == 3 and whole[:4] == b'\x89PNG':
        at, out = 8, bytearray(whole)
        while at < len(out):
            n = int.from_bytes(out[at : at + 4], 'big')
            if n and rng.random() < 0.4:
                out[at + 8 + rng.integers(n)] = rng.integers(256)
            out[at + 8 + n : at + 12 + n] = zlib.crc32(out[at + 4 : at + 8 + n]).to_bytes(4, 'big')
            at += 12 + n
    return bytes(out)


@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.filterwarnings('ignore')
def test_no_damage_goes_without_a_name(name, limit):
    rng, wrong = np.random.default_rng(0), 0
    set_max_pixels(10**6)
    for _ in range(60):
        source = held(damaged(WHOLE[name], rng), 'spoilt.file')
        for read in decode_image, lambda s: decode_mask(s, SPACE):
            try:
                read(source)
            except BadFile as e:
                wrong += 1
                assert 'spoilt.file' in str(e)
    assert wrong


def test_what_is_no_fault_of_the_content(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    path.write_bytes(WHOLE['png'])
    for error, word in (
        (PermissionError(13, 'Permission denied'), 'Permission denied; see to the file'),
        (MemoryError(), 'does not fit into the memory'),
    ):

        def refuse(*_):
            raise error

        with monkeypatch.context() as m:
            m.setattr(Image, 'open', refuse)
            with pytest.raises(BadFile, match=rf"a\.png' cannot be read: .*{word}"):
                read_image(path)


# --- MATLAB
def mat(**kw):
    savemat(file := io.BytesIO(), kw.pop('content', dict(names=np.array(['a', 'b'], object), S=MASK, T=1.5)), **kw)
    return file.getvalue()


def test_mat_of_every_kind():
    for kind in 'u1 i1 u2 i2 u4 i4 u8 i8 f4 f8 ?'.split():
        for packed in False, True:
            for shape in (20, 30), (1, 1), (3, 1):
                ids = np.resize(MASK, shape).astype(kind)
                got = read_mask(
                    held(
                        mat(
                            content=dict(a='x', b=np.zeros((2, 2, 2)), c={'d': 1}, S=ids, z=ids[:1] + 0),
                            do_compression=packed,
                        ),
                        'm.mat',
                    ),
                    LabelSpace('s', list('abcdef'), [(0, 0, 0)] * 6),
                )
                assert np.array_equal(got, ids)
    for content in (
        dict(S='text'),
        dict(S={'a': 1}),
        dict(S=np.array([1 + 2j])),
        dict(S=np.array([[np.nan]])),
        dict(S=np.array([[0.5]])),
        dict(S=np.array(['a'], object)),
        dict(s=MASK),
    ):
        with pytest.raises(BadFile, match=r'm\.mat'):
            read_mask(held(mat(content=content), 'm.mat'), SPACE)


def test_mat_of_the_other_byte_order():
    def element(kind, content):
        return np.array([kind, len(content)], '>u4').tobytes() + content + bytes(-len(content) % 8)

    array = element(6, np.array([9, 0], '>u4').tobytes()) + element(5, np.array(MASK.shape, '>i4').tobytes())
    array += element(1, b'S') + element(4, MASK.T.astype('>u2').tobytes())
    whole = b'MATLAB 5.0'.ljust(124) + b'\1\0MI' + element(14, array)
    for name in 'm.mat', 'M.MAT':
        assert np.array_equal(read_mask(held(whole, name), SPACE), MASK)


def test_a_large_variable_that_is_packed_small(limit):
    "A kilobyte that holds a gigabyte of zeros is not unpacked."
    packed = mat(content=dict(S=np.zeros((300, 300))), do_compression=True)
    set_max_pixels(100)
    with pytest.raises(BadFile, match='above 4896 bytes'):
        read_mask(held(packed, 'm.mat'), SPACE)
    set_max_pixels(300 * 300)
    assert read_mask(held(packed, 'm.mat'), SPACE).shape == (300, 300)


def test_no_damaged_mat_ends_the_process():
    "In a process of its own, which must come to its end: scipy.io.loadmat was ended by the system (exit 139) at some such files."
    code = f'''
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'data')!r}]
import numpy as np
from test_readers import mat, damaged, held, MASK, SPACE
from idrnet_nb.data.readers import BadFile, decode_mask
rng, named = np.random.default_rng(0), 0
for packed in False,True:
    whole = mat(do_compression=packed)
    for i in range(1500):
        out = damaged(whole, rng) if i%3 else bytearray(whole)
        if not i%3:
            at = 128+8*rng.integers((len(out)-128)//8)
            out[at:at+8] = rng.choice([0,1,5,6,9,14,15,255,2**31-1,2**32-1], 2).astype('<u4').tobytes() # a tag of an element
        try: decode_mask(held(bytes(out),'m.mat'), SPACE)
        except BadFile as e: named += 'm.mat' in str(e)
print(named)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1000, done.stderr[-2000:]


# --- numbers that are not what they seem
def deep_png(values):
    "A PNG of 16 bits a channel, which Pillow cannot write: `h w c`, c of 2 (grey and alpha), 3 or 4."
    h, w, c = values.shape
    lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in values)
    head = w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + bytes([16, {2: 4, 3: 2, 4: 6}[c], 0, 0, 0])
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('bits', [8, 10, 12])
@pytest.mark.parametrize('kind', ['grey', 'grey tiff', '32 bits', 'RGB', 'RGBA', 'LA'])
def test_sixteen_bits_of_twelve(kind, bits):
    "They became black, or nearly."
    grey = (SMOOTH.astype(int) * (2**bits - 1) // SMOOTH.max()).astype(np.uint16)

    def content(x):
        if kind == 'RGB':
            return deep_png(np.dstack([x, x, x]))
        if kind == 'RGBA':
            return deep_png(np.dstack([x, x, x, np.full_like(x, 65535)]))
        if kind == 'LA':
            return deep_png(np.dstack([x, np.full_like(x, 65535)]))
        return encoded(
            Image.fromarray(x.astype(np.int32) if kind == '32 bits' else x),
            'PNG' if kind == 'grey' else 'TIFF',
        )

    with pytest.raises(
        BadFile,
        match=f'{"1?" if kind in ("RGB", "RGBA", "LA") else ""}{"(12|8)" if kind in ("RGB", "RGBA", "LA") else bits}-bit numbers.*8 bits',
    ) as e:
        read_image(held(content(grey), 'dark.png'))
    assert e.value.kind == 'wrong range' and 'dark.png' in str(e.value)
    full = grey.astype(int) * (65535 // (2**bits - 1))
    assert abs(read_image(held(content(full.astype(np.uint16))))[..., 0] - (full >> 8)).max() <= 1
    if kind == 'grey':
        assert (read_image(held(content(0 * grey))) == 0).all()  # truly black: read, and named by `empty`


def test_numbers_beyond_sixteen_bits():
    for x in SMOOTH.astype(np.int32) - 1, SMOOTH.astype(np.int32) * 1000:
        with pytest.raises(BadFile, match=r"d\.tiff' holds numbers from -?\d+ to \d+, an image has 0..65535"):
            read_image(held(encoded(Image.fromarray(x), 'TIFF'), 'd.tiff'))
    with pytest.raises(BadFile, match='fractions'):
        read_image(held(encoded(Image.fromarray(SMOOTH / 255.0), 'TIFF')))


def test_modes_of_images():
    for mode in '1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr':
        kind = 'JPEG' if mode == 'YCbCr' else 'TIFF'
        got = decode_image(held(encoded(Image.fromarray(RGB).convert(mode), kind)))
        assert got.rgb.shape == (20, 30, 3) and got.empty() == ''
    assert abs(read_image(held(WHOLE['lab'])).astype(int) - RGB).mean() < 4


def test_frames(tmp_path):
    more = Image.fromarray(RGB[::-1])
    for kind in 'TIFF', 'GIF', 'WEBP', 'PNG':
        with pytest.raises(BadFile, match=r"s\.x' holds 2 frames") as e:
            read_image(held(encoded(Image.fromarray(RGB), kind, save_all=True, append_images=[more]), 's.x'))
        assert e.value.kind == 'several frames'
    with pytest.raises(BadFile, match='2 frames'):
        read_mask(
            held(encoded(Image.fromarray(MASK), 'TIFF', save_all=True, append_images=[Image.fromarray(MASK[::-1])])),
            SPACE,
        )
    small = more.resize((15, 10))  # a smaller copy beside it, as maps have it
    assert np.array_equal(
        read_image(held(encoded(Image.fromarray(RGB), 'TIFF', save_all=True, append_images=[small]))), RGB
    )
    assert (
        read_image(held(encoded(Image.fromarray(RGB), 'MPO', save_all=True, append_images=[more]))).shape == RGB.shape
    )  # of a telephone


def test_next_to_nothing():
    for x, word in (
        (np.zeros((4, 5, 3)), 'single colour, #000000'),
        (np.full((4, 5, 3), [255, 0, 0]), '#ff0000'),
        (SMOOTH % 13, 'nearly black, no value is above 12'),
        (200 + SMOOTH % 3, '200 to 202'),
    ):
        assert word in decode_image(held(encoded(Image.fromarray(np.asarray(x, np.uint8))))).empty()
    clear = np.dstack([RGB, np.zeros_like(SMOOTH)])
    with pytest.raises(BadFile, match=r"c\.png' holds an image, but its alpha is 0 everywhere.*convert\('RGB'\)") as e:
        decode_image(held(encoded(Image.fromarray(clear)), 'c.png'))
    assert e.value.kind == 'transparent'
    assert 'alpha is 0' in decode_image(held(encoded(Image.fromarray(0 * clear)))).empty()
    clear[3:9, 3:9, 3] = 255
    assert DecodedImage(RGB).empty() == decode_image(held(encoded(Image.fromarray(clear)))).empty() == ''


# --- large ones
def test_the_limit_of_pixels(limit, tmp_path):
    path = tmp_path / 'big.png'
    Image.fromarray(RGB).save(path)
    for n in 1, 100, 598:
        set_max_pixels(n)
        with pytest.raises(
            BadFile,
            match=r"big\.png' has 600 pixels, more than the \d+ .*set_max_pixels\(600\).*--max-pixels 600",
        ) as e:
            read_image(path)
        assert e.value.kind == 'too large'
    for n in 600, 700, 10**12, None:
        set_max_pixels(n)
        assert read_image(path).shape == (20, 30, 3)
    for n in 0, -5, 1.5, '9':
        with pytest.raises(ValueError, match='set_max_pixels: n is'):
            set_max_pixels(n)


def test_a_large_image_is_no_noise(tmp_path):
    "Between half the limit and the limit Pillow warns, without a name."
    Image.fromarray(RGB).save(tmp_path / 'big.png')
    code = f"from PIL import Image; Image.MAX_IMAGE_PIXELS = 400\nfrom idrnet_nb.data.readers import read_image; print(read_image({str(tmp_path / 'big.png')!r}).shape)"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, '', '(20, 30, 3)')


def test_workers_know_the_limit(limit, tmp_path):
    rows = write_pair(tmp_path, RGB, MASK, kind='PNG')
    set_max_pixels(300)
    packed = pickle.dumps(SegmentationDataset(rows, SPACE))
    set_max_pixels(None)
    with pytest.raises(BadFile, match='600 pixels'):
        pickle.loads(packed)[0]  # as a started, not forked, worker gets it
    set_max_pixels(1000)
    (image,) = [
        x
        for x, _ in DataLoader(
            SegmentationDataset(rows, SPACE), batch_size=None, num_workers=1, multiprocessing_context='spawn'
        )
    ]
    assert image.shape == (3, 20, 30)


# --- ids
FROM_ONE = ['ade20k', 'coco_stuff_10k', 'pascal_context_59']


@pytest.mark.parametrize('name', FROM_ONE)
def test_masks_that_were_reduced_already(name):
    "They were accepted, every class off by one."
    space, k = LABEL_SPACES[name], LABEL_SPACES[name].num_classes
    reduced = np.array([[0, k - 1, 255]], np.uint8)
    with pytest.raises(
        BadFile,
        match=rf"r\.png' holds 255, which no file of '{name}' does: its ids are training ids already .*raw_to_train=None",
    ) as e:
        read_mask(held(encoded(Image.fromarray(reduced)), 'r.png'), space)
    assert e.value.kind == 'unseen ids'
    assert np.array_equal(
        read_mask(held(encoded(Image.fromarray(reduced))), replace(space, raw_to_train=None)), reduced
    )
    published = np.array([[0, 1, k]], np.uint8)
    assert read_mask(held(encoded(Image.fromarray(published))), space).tolist() == [[255, 0, k - 1]]


def test_the_other_spaces_that_have_no_255():
    for name in 'camvid', 'ccp16':  # void is another id, or none
        with pytest.raises(BadFile, match='training ids already'):
            read_mask(held(encoded(Image.fromarray(np.array([[0, 5, 255]], np.uint8)))), LABEL_SPACES[name])
    with pytest.raises(BadFile, match='does not know: 12 '):
        read_mask(held(encoded(Image.fromarray(np.array([[0, 12, 255]], np.uint8)))), SPACE)
    for name, b in DATASETS.items():
        if name not in (*FROM_ONE, 'camvid', 'ccp16'):
            assert b.space.encode(np.array([[255]])).tolist() == [[255]]


def test_a_folder_called_labelTrainIds_is_no_name_of_a_mask(tmp_path):
    (tmp_path / 'labelTrainIds').mkdir()
    path = tmp_path / 'labelTrainIds' / 'a_gtFine_labelIds.png'
    Image.fromarray(np.array([[7, 33, 0]], np.uint8)).save(path)
    assert read_mask(path, LABEL_SPACES['cityscapes']).tolist() == [[0, 18, 255]]


def test_what_to_write_into_the_list_of_classes():
    space = LabelSpace('yard', ['a', 'b'], [(0, 0, 0)] * 2)
    with pytest.raises(
        ValueError,
        match=r'does not know: 7 \(1 pixels\)\. If 7 is a class, add the line `name, 7` .*`void, 7`',
    ):
        space.encode([[0, 7]])
    with pytest.raises(ValueError, match=r'does not know: -1 \(2 pixels\)\. An id cannot be below 0: .*255.*np\.where'):
        space.encode([[-1, -1]])
    with pytest.raises(ValueError, match='and 12 more'):
        space.encode(np.arange(22)[None])


def test_ids_as_large_as_they_come():
    "A table up to the largest id would have taken 16 GiB."
    for top in 2**20 - 1, 2**20, 2**31, 2**62:
        space = LabelSpace('far', ['a', 'b', 'c'], [(0, 0, 0)] * 3, {0: 255, 5: 1, top: 2, 17: 0})
        raw = np.array([[0, 5, top], [17, 0, 5]])
        assert space.encode(raw).tolist() == [[255, 1, 2], [0, 255, 1]] and space.encode(raw).dtype == np.uint8
        for bad in 1, 6, top - 1, top + 1, -1, -(2**63), 2**63 - 1:
            with pytest.raises(ValueError, match=rf'know: {bad} \(1 pixels\)'):
                space.encode(np.array([[5, bad]]))
        with pytest.raises(ValueError, match=rf'know: {2**64 - 1} '):
            space.encode(np.array([[2**64 - 1]], np.uint64))
        assert pickle.loads(pickle.dumps(space)).encode(raw).tolist() == space.encode(raw).tolist()
    assert LabelSpace('v', ['a'], [(0, 0, 0)], ignore=2**40).encode([[0, 2**40]]).tolist() == [[0, 2**40]]
    assert transforms.largest_share(torch.tensor([[2**40, 1, 1, 2]]), 2**40) == 2 / 3
    for wrong in dict(raw_to_train={2**63: 0}), dict(ignore=2**63):
        with pytest.raises(ValueError, match='2\\*\\*63|too large'):
            LabelSpace('v', ['a'], [(0, 0, 0)], **wrong)


def test_lookup_by_table_and_by_list_agree(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = {int(a): int(b) for a, b in zip(rng.choice(300, 40, replace=False), rng.integers(0, 9, 40))}
        raw = rng.choice([*pairs], (7, 9))
        spaces = [LabelSpace('s', list('abcdefghi'), [(0, 0, 0)] * 9, p) for p in (pairs, {**pairs, 2**40: 0})]
        assert np.array_equal(spaces[0].encode(raw), spaces[1].encode(raw))


@pytest.mark.parametrize(
    'mode,word',
    [
        ('RGB', 'getchannel'),
        ('RGBA', 'getchannel'),
        ('LA', 'getchannel'),
        ('F', 'astype'),
        ('CMYK', 'ids_from_colours'),
        ('colours', 'ids_from_colours'),
    ],
)
def test_masks_that_are_no_index_mask(mode, word, tmp_path):
    im = Image.fromarray(RGB) if mode == 'colours' else Image.fromarray(MASK).convert(mode)
    (path := tmp_path / 'm.tiff').write_bytes(encoded(im, 'TIFF'))
    with pytest.raises(BadFile, match=rf"m\.tiff' is \w+, but one index per pixel was expected; .*{word}") as e:
        read_mask(path, SPACE)
    assert e.value.kind == 'no index mask'
    if word == 'getchannel':  # what is said to do does it
        Image.open(path).getchannel(0).save(tmp_path / 'new.png')
        assert np.array_equal(read_mask(tmp_path / 'new.png', SPACE), MASK)


def test_index_masks_of_every_kind():
    for im in (
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint16)),
        Image.fromarray(MASK.astype(np.int32)),
        Image.fromarray(MASK).convert('P'),
    ):
        assert np.array_equal(read_mask(held(encoded(im, 'TIFF')), SPACE), MASK)
    assert read_mask(held(encoded(Image.fromarray(MASK > 2))), SPACE).max() == 1
    with pytest.raises(BadFile, match='is a JPEG'):
        read_mask(
            held(encoded(Image.fromarray(MASK), 'MPO', save_all=True, append_images=[Image.fromarray(MASK)])),
            SPACE,
        )


def test_text_masks():
    for text in '1 99999999999999999999999\n', '1 x', '1.0 2', '\x00', '1 2\n3':
        with pytest.raises(BadFile, match=r'a\.regions\.txt'):
            read_mask(held(text.encode(), 'a.regions.txt'), LABEL_SPACES['stanford_background'])


def test_void_in_text_is_never_a_class():
    "-1 was made 255, which is a class where there are that many."
    many = LabelSpace('many', [str(i) for i in range(300)], [(0, 0, 0)] * 300, ignore=300)
    assert read_mask(held(b'-1 255\n0 299', 'a.regions.txt'), many).tolist() == [[300, 255], [0, 299]]
    own = LabelSpace('own', ['a', 'b'], [(0, 0, 0)] * 2, {4: 0, 7: 1})
    assert read_mask(held(b'-1 4\n7 -1', 'a.regions.txt'), own).tolist() == [[255, 0], [1, 255]]


# --- colours
def test_arrays_of_colours():
    space = LABEL_SPACES['pascal_voc']
    colours = np.array(space.palette, np.uint8)[np.arange(20).reshape(4, 5)]
    want = np.arange(20).reshape(4, 5)
    alpha = np.dstack([colours, np.full((4, 5), 255, np.uint8)])
    for good in colours, alpha, colours.astype(np.int64), colours.tolist():
        assert np.array_equal(ids_from_colours(good, space), want)
    holes = alpha.copy()
    holes[0, :3, 3] = 254
    for wrong, word in (
        (holes, '3 pixels are transparent'),
        (colours[..., 0], 'one number per pixel.*read_mask'),
        (colours / 255, 'float64.*round it'),
        (colours.astype(np.int16) - 200, 'from -200'),
        (np.moveaxis(colours, -1, 0), r'\(3, 4, 5\)'),
        (colours[None], r'\(1, 4, 5, 3\)'),
        (colours > 3, 'bool'),
    ):
        with pytest.raises(ValueError, match=f'ids_from_colours: .*{word}'):
            ids_from_colours(wrong, space)
    assert ids_from_colours(np.array([[[1, 2, 3]]], np.uint8), space, (1, 2, 3)).tolist() == [[255]]
    assert ids_from_colours(colours[:0], space).shape == (0, 5)


def test_painted_masks_of_the_hub_keep_their_tag():
    space = LABEL_SPACES['pascal_voc']
    colours = np.array(space.palette, np.uint8)[MASK]
    for im in Image.fromarray(colours), Image.fromarray(colours).convert('RGBA'):
        batch = hub_datasets._index_masks(dict(label=[held(encoded(im, exif=tag(6)))]), space, ((224, 224, 192),))
        got = decode_mask(batch['label'][0], space)
        assert got.tag == 6 and np.array_equal(got.ids, apply_orientation(MASK, 6))


def test_check_data_says_what_reading_found(tmp_path):
    "How many images are turned by a tag, what is unclear, what holds next to nothing."
    write_pair(tmp_path, RGB, MASK, 6, name='stored')
    write_pair(tmp_path, RGB, apply_orientation(MASK, 8), 8, name='seen')
    write_pair(tmp_path, RGB, MASK, 3, 3, name='alike')
    write_pair(tmp_path, RGB, MASK, 3, name='unclear')
    write_pair(tmp_path, 0 * RGB, MASK, kind='PNG', name='black')
    rows = write_pair(tmp_path, RGB, MASK, name='plain')
    report = check_data(rows, SPACE, progress=False)
    faults = {(kind, Path(path).stem) for kind, path, _ in report.faults}
    assert faults == {('orientation unclear', 'unclear'), ('nearly empty', 'black')}, report.faults
    turned = {Path(path).stem: said for kind, path, said in report.remarks if kind == 'turned by a tag'}
    assert [*turned] == ['alike', 'seen', 'stored', 'unclear'] and 'stored pixels' in turned['stored']
    assert sum(report.pixels) == 6 * 600 and 'turned by a tag: 4' in str(report)
