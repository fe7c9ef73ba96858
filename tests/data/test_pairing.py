"""Pairing files, class lists, left and right, and what check-data and a training say of data as a whole: each from a fault that was silent."""

import json, os, pickle, unicodedata, warnings
from pathlib import Path
import numpy as np, pytest
from datasets import Dataset
from PIL import Image
from idrnet_nb.data.validate import DataFault, Report, check_data, check_pair, check_parts, raise_faults
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.mirrored_classes import flip_lines, left_right, sides
from idrnet_nb.data.pairing import Unpaired, csv_pairs, folder_pairs, hub_pairs, name_differences, why_missing
from idrnet_nb.data.class_lists import space_from_file

RNG = np.random.default_rng(0)


def put(path, array=None, **kw):
    "An image of its own at `path`, or the mask that is given."
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, (8, 10, 3)) if array is None else array
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **kw)
    return path


def spots(*ids):
    return RNG.choice(ids, (8, 10))


def pairs(root, names=('a', 'b', 'c', 'd'), ids=(0, 1), image='{}.png', mask='{}.png'):
    "Two folders of pairs."
    for name in names:
        put(root / 'images' / image.format(name))
        put(root / 'masks' / mask.format(name), spots(*ids))
    return root / 'images', root / 'masks'


def classes(root, text, name='classes.txt', code='utf-8'):
    (root / name).write_bytes(text.encode(code))
    return space_from_file(root / name)


def kinds(report):
    return [f[0] for f in report.faults]


def check(rows, space, **kw):
    return check_data(rows, space, progress=False, **kw)


def both(train, unseen, space, **kw):
    return check_parts(dict(train=train, unseen=unseen), space, progress=False, **kw)


# --- F1: what masks hold, and what the list says
def test_white_masks_are_a_fault_with_the_line_to_write(tmp_path):
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 255)))
    report = check(rows, classes(tmp_path, 'background\nobject\n'))
    assert kinds(report) == ['class without a pixel', 'ignored id'] and not report.ok
    assert (
        'background, 0 / object, 255' in report.faults[0][2]
        and 'object, 255' in report.faults[1][2]
        and 'void, 255' in report.faults[1][2]
    )
    fixed = check(rows, classes(tmp_path, 'background, 0\nobject, 255\n'))
    assert fixed.ok and min(fixed.pixels) > 0 and fixed.void == 0


def test_the_line_to_write_works_for_the_next_try(tmp_path):
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 255)))
    what = check(rows, classes(tmp_path, 'background\n"tumour, grade 2"\n')).faults[0][2]
    lines = what.rpartition('class list: ')[2].split(' / ')
    assert check(rows, classes(tmp_path, '\n'.join(lines))).ok


@pytest.mark.parametrize('share,fault', [(0.05, False), (0.5, True)])
def test_a_rim_is_no_class(tmp_path, share, fault):
    images, masks = pairs(tmp_path)
    for p in masks.iterdir():
        ids = np.array(Image.open(p))
        ids[:, : int(10 * share + 0.5)] = 255
        put(p, ids)
    rows = folder_pairs(images, masks)
    assert ('ignored id' in kinds(check(rows, classes(tmp_path, 'a\nb\n')))) == fault
    said = check(rows, classes(tmp_path, 'a\nb\nvoid, 255\n'))  # who says so may
    assert said.ok and ('much ignored' in [r[0] for r in said.remarks]) == fault


def test_another_id_that_is_ignored_is_counted_apart(tmp_path):
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 1, 7, 255)))
    report = check(rows, classes(tmp_path, 'a, 0\nb, 1\nvoid, 7\n'))
    masks = [np.array(Image.open(r['label']['path'])) for r in rows]
    assert dict(report.ignored) == {7: sum((m == 7).sum() for m in masks), 255: sum((m == 255).sum() for m in masks)}
    assert kinds(report) == ['ignored id'] and 'id 255' in report.faults[0][2] and 'id 7' in str(report.remarks)


def test_spaces_made_in_python_too(tmp_path):
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 255)))
    assert kinds(check(rows, LabelSpace('two', ('a', 'b'), palette(2)))) == ['class without a pixel', 'ignored id']


@pytest.mark.parametrize('ids,line', [((0, 255), 'background, 0 / object, 255'), ((0,), 'background, 0 / object, 1')])
def test_one_class_alone(tmp_path, ids, line):
    report = check(folder_pairs(*pairs(tmp_path, ids=ids)), classes(tmp_path, 'object\n'))
    assert kinds(report)[0] == 'one class' and line in report.faults[0][2]
    with pytest.raises(DataFault, match='one class'):
        raise_faults(dict(train=report))


def test_all_is_ignored(tmp_path):
    report = check(folder_pairs(*pairs(tmp_path, ids=(255,))), classes(tmp_path, 'a\nb\n'))
    assert kinds(report) == ['nothing but void'] * 4 + ['all ignored', 'ignored id']
    with pytest.raises(DataFault, match='all ignored'):
        raise_faults(dict(train=report))


def test_one_mask_of_nothing_does_not_stop_a_training(tmp_path):
    images, masks = pairs(tmp_path, ids=(0, 1))
    put(masks / 'a.png', np.full((8, 10), 255))
    report = check(folder_pairs(images, masks), classes(tmp_path, 'a\nb\nvoid, 255\n'))
    assert kinds(report) == ['nothing but void']
    raise_faults(dict(train=report))


def test_classes_that_never_occur(tmp_path):
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 1)))
    own = check(rows, classes(tmp_path, 'a\nb\nc\n'))
    assert kinds(own) == ['class without a pixel'] and "'c' (id 2)" in own.faults[0][2]
    assert check(rows, LABEL_SPACES['pascal_voc']).ok  # 19 of a published set's never do
    assert (
        check(rows, classes(tmp_path, 'a\nb\nc\n'), published=True).ok
        and not check(rows, LABEL_SPACES['pascal_voc'], published=False).ok
    )
    called = classes(tmp_path, '\n'.join(LABEL_SPACES['pascal_voc'].classes), 'pascal_voc.txt')
    assert not check(rows, called).ok  # the name of a file makes no published set


def test_many_classes_that_never_occur_are_one_fault_with_all_names(tmp_path):
    "Advice for each kind: a class of one other image cannot be had by another split; ids of bare names shift."
    train = folder_pairs(*pairs(tmp_path / 't', ids=(0, 4)))
    one = folder_pairs(*pairs(tmp_path / 'o', 'x', ids=(0, 1)))
    more = folder_pairs(*pairs(tmp_path / 'm', 'yz', ids=(0, 2)))
    parts = dict(train=train, val=one, test=more)
    report = check_parts(parts, classes(tmp_path, 'a\nb\nc\nd\ne\n'), progress=False)['train']
    ((kind, _, what),) = report.faults
    assert kind == 'class without a pixel' and what.startswith('classes: 3 of 5 classes have no pixel')
    assert "'b' (id 1; 1 image of 'val' has it), 'c' (id 2; 2 images of 'test' have it), 'd' (id 3)" in what
    assert 'To learn c, divide the data in another way. Take the others out' in what
    assert 'all later ids would shift: write them first, such as "c, 2"' in what
    report = check_parts(dict(train=train), classes(tmp_path, 'a, 0\ne, 4\nb, 7\n'), progress=False)['train']
    assert "'b' (id 7) has no pixel" in report.faults[0][2] and 'shift' not in report.faults[0][2]
    report = check_parts(parts, classes(tmp_path, 'a, 0\ne, 4\nb, 1\nvoid, 2\n'), progress=False)
    assert 'Add images that have it' in report['train'].faults[0][2]


def test_a_class_that_only_the_unseen_part_has(tmp_path):
    train, unseen = (
        folder_pairs(*pairs(tmp_path / 't', ids=(0, 1))),
        folder_pairs(*pairs(tmp_path / 'u', 'xy', ids=(0, 1, 2))),
    )
    space = classes(tmp_path, 'a\nb\nc\n')
    reports = both(train, unseen, space, images=False)
    assert (
        kinds(reports['train']) == ['class without a pixel']
        and "2 images of 'unseen' have it" in reports['train'].faults[0][2]
    )
    assert reports['unseen'].ok
    with pytest.raises(DataFault, match="train, class without a pixel: .*'c'"):
        raise_faults(reports)
    raise_faults(reports, allow=['class without a pixel'])
    assert both(unseen, train, space)['train'].ok  # that the unseen part lacks one is no fault


def test_more_than_a_byte_of_classes(tmp_path):
    space = classes(tmp_path, '\n'.join(f'c{i}' for i in range(300)))
    assert (
        space.ignore == 300
        and space.encode(np.array([[255, 299, 300]])).tolist() == [[255, 299, 300]]
        and space.implicit_ignore == (300,)
    )
    rows = folder_pairs(*pairs(tmp_path, ids=(0, 255)))
    assert 'ignored id' not in kinds(check(rows, space)) and check(rows, space).pixels[255] > 0


def test_unreadable_masks_say_nothing_of_classes(tmp_path):
    images, masks = pairs(tmp_path)
    for p in masks.iterdir():
        p.write_bytes(b'x')
    assert kinds(check(folder_pairs(images, masks), classes(tmp_path, 'a\nb\n'))) == ['broken'] * 4


def test_reports_come_back_from_json(tmp_path):
    report = check(folder_pairs(*pairs(tmp_path, ids=(0, 255))), classes(tmp_path, 'left eye\nright eye\n'))
    again = Report(**json.loads(json.dumps(report.to_json())))
    assert (
        again.to_json() == report.to_json()
        and str(again) == str(report)
        and "'left eye' / 'right eye' change places, guessed from their names" in str(report)
    )
    old = {k: v for k, v in report.to_json().items() if k not in ('remarks', 'ignored', 'flip')}
    assert Report(**old).kinds() == report.kinds()  # written by an older version


# --- what a training asks before it begins
def test_masks_only_and_by_workers(tmp_path):
    images, masks = pairs(tmp_path)
    (images / 'a.png').write_bytes(b'no image')
    (masks / 'b.png').write_bytes(b'no mask')
    (images / 'c.png').unlink()
    held = lambda p: dict(path=str(p), bytes=None)
    rows = Dataset.from_list(
        [dict(id=n, image=held(images / f'{n}.png'), label=held(masks / f'{n}.png')) for n in 'abcd']
    )
    space = classes(tmp_path, 'a\nb\n')
    one, two = [check_parts(dict(train=rows), space, n, False, images=False)['train'] for n in (0, 2)]
    assert (
        one.to_json() == two.to_json()
        and kinds(one) == ['broken', 'missing']
        and kinds(check(rows, space)) == ['broken', 'broken', 'missing']
    )
    assert check_pair(rows[0], space).faults[0][0] == 'broken' and check_pair(rows[0], space, images=False).faults == []
    with pytest.raises(DataFault, match='b.png') as e:
        raise_faults(dict(train=one))
    raise_faults(dict(train=one), skip=['train'])
    with pytest.raises(DataFault, match='unseen, broken'):
        raise_faults(dict(train=one, unseen=one), skip=['train'])
    assert pickle.loads(pickle.dumps(e.value)).faults == e.value.faults and len(e.value.faults) == 2


def test_many_faults_are_few_lines(tmp_path):
    images, masks = pairs(tmp_path, [f'{i:02}' for i in range(20)])
    for p in masks.iterdir():
        put(p, spots(7))
    with pytest.raises(DataFault, match='and 17 more') as e:
        raise_faults(dict(train=check(folder_pairs(images, masks), classes(tmp_path, 'a\nb\n'))))
    assert len(str(e.value).splitlines()) == 5 and len(e.value.faults) == 20


# --- F18: the same images again
@pytest.mark.parametrize('how', ['path', 'copy', 'link', 'held'])
def test_the_same_image_in_both_parts(tmp_path, how):
    images, masks = pairs(tmp_path)
    train = folder_pairs(images, masks, ids=['a', 'b'])
    other = tmp_path / 'other'
    if how == 'path':
        unseen = folder_pairs(images, masks, ids=['b', 'c'])
    else:
        pairs(other, 'c')
        if how == 'link':
            (other / 'images' / 'z.png').symlink_to(images / 'b.png')
        else:
            (other / 'images' / 'z.png').write_bytes((images / 'b.png').read_bytes())
        put(other / 'masks' / 'z.png', spots(0, 1))
        unseen = folder_pairs(other / 'images', other / 'masks')
    if how == 'held':
        unseen = Dataset.from_list(
            [
                dict(
                    id=r['id'],
                    **{k: dict(path=None, bytes=Path(r[k]['path']).read_bytes()) for k in ('image', 'label')},
                )
                for r in unseen
            ]
        )
    reports = both(train, unseen, classes(tmp_path, 'a\nb\n'))
    assert (
        reports['train'].ok
        and kinds(reports['unseen']) == ['in two parts']
        and 'b.png' in reports['unseen'].faults[0][2]
    )
    with pytest.raises(DataFault, match='in two parts'):
        raise_faults(reports, skip=['train', 'unseen'])
    assert both(train, unseen, classes(tmp_path, 'a\nb\n'), published=True)['unseen'].ok


def test_masks_may_be_alike(tmp_path):
    rows = [folder_pairs(*pairs(tmp_path / p, p, ids=(0, 1))) for p in ('ab', 'cd')]
    for r in rows:
        put(Path(r[0]['label']['path']), np.eye(8, 10))
    assert all(r.ok for r in both(*rows, classes(tmp_path, 'a\nb\n')).values())


def test_an_image_twice_in_one_part(tmp_path):
    images, masks = pairs(tmp_path)
    (images / 'd.png').write_bytes((images / 'a.png').read_bytes())
    report = check(folder_pairs(images, masks), classes(tmp_path, 'a\nb\n'))
    assert kinds(report) == ['twice'] and 'd.png' in report.faults[0][1] and 'a.png' in report.faults[0][2]
    raise_faults(dict(train=report))  # more of the same is no reason to stop


@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_images_given_as_masks(tmp_path, ending):
    grey = [put(tmp_path / 'images' / f'{n}.{ending}', spots(0, 1)) for n in 'abc']
    space = classes(tmp_path, 'a\nb\n')
    with pytest.raises(ValueError, match='given as images and as masks'):
        folder_pairs(tmp_path / 'images', tmp_path / 'images')
    (tmp_path / 'masks').mkdir()
    with pytest.raises(ValueError, match='given as images and as masks'):
        folder_pairs(tmp_path / 'images', tmp_path / 'masks' / '..' / 'images')
    (tmp_path / 'p.csv').write_text('image,label\n' + ''.join(f'images/{p.name},images/{p.name}\n' for p in grey))
    assert kinds(check(csv_pairs(tmp_path / 'p.csv'), space)).count('image as mask') == 3
    for p in grey:
        put(tmp_path / 'masks' / p.name).write_bytes(p.read_bytes())
    report = check(folder_pairs(tmp_path / 'images', tmp_path / 'masks'), space)
    assert kinds(report).count('image as mask') == 3
    with pytest.raises(DataFault, match='image as mask'):
        raise_faults(dict(train=report))


def test_one_column_for_both(tmp_path):
    put(tmp_path / 'a.png')
    (tmp_path / 't.csv').write_text('x\na.png\n')
    with pytest.raises(ValueError, match='given as images and as masks'):
        csv_pairs(tmp_path / 't.csv', 'x', 'x')
    from datasets import Image as Images

    hub = Dataset.from_dict(dict(x=[str(tmp_path / 'a.png')])).cast_column('x', Images())
    with pytest.raises(ValueError, match='given as images and as masks'):
        hub_pairs(hub, 'x', 'x')


# --- F3: files that were passed over
def test_links_to_folders_are_followed(tmp_path):
    pairs(tmp_path / 'disk', 'abcdef')
    images, masks = pairs(tmp_path / 'set', 'wxyz')
    for side in 'images', 'masks':
        (tmp_path / 'set' / side / 'site').symlink_to(tmp_path / 'disk' / side)
        (tmp_path / 'set' / side / 'site' / 'again').symlink_to(tmp_path / 'set' / side)  # a circle
        (tmp_path / 'set' / side / 'itself').symlink_to(
            tmp_path / 'set' / side / 'itself'
        )  # a link to itself leads nowhere
    with pytest.raises(Unpaired, match='leads nowhere') as e:
        folder_pairs(images, masks)
    assert len(e.value.rows) == 10 and [f[0] for f in e.value.faults] == ['dead link'] * 2
    for side in 'images', 'masks':
        (tmp_path / 'set' / side / 'itself').unlink()
    assert folder_pairs(images, masks)['id'][:] == [*(f'site/{c}' for c in 'abcdef'), 'w', 'x', 'y', 'z']


def test_dead_links_are_named(tmp_path):
    images, masks = pairs(tmp_path)
    (images / 'far').symlink_to(tmp_path / 'gone')
    (masks / 'b.png').unlink()
    (masks / 'b.png').symlink_to(tmp_path / 'gone.png')
    report = check_parts(dict(all=lambda: folder_pairs(images, masks)), classes(tmp_path, 'a\nb\n'), progress=False)[
        'all'
    ]
    assert (
        kinds(report) == ['dead link', 'missing'] and 'far' in report.faults[0][2] and "link to" in report.faults[1][2]
    )
    assert 'gone.png' in report.faults[1][2]


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')])
def test_forms_of_unicode(tmp_path, forms):
    name = 'Köln/Straße é'
    image, mask = [unicodedata.normalize(form, name) for form in forms]
    put(tmp_path / 'images' / f'{image}.jpg')
    put(tmp_path / 'masks' / f'{mask}.png', spots(0, 1))
    rows = folder_pairs(tmp_path / 'images', tmp_path / 'masks')
    assert rows['id'][:] == [unicodedata.normalize('NFC', name)] and check(rows, classes(tmp_path, 'a\nb\n')).ok
    assert len(folder_pairs(tmp_path / 'images', tmp_path / 'masks', ids=[unicodedata.normalize('NFD', name)])) == 1


def test_small_and_capital_letters(tmp_path):
    put(tmp_path / 'images' / 'IMG_1.JPG', format='JPEG')
    put(tmp_path / 'masks' / 'img_1.png', spots(0, 1))
    assert folder_pairs(tmp_path / 'images', tmp_path / 'masks')['id'][:] == ['IMG_1']
    put(tmp_path / 'images' / 'img_1.jpg')  # now the name decides
    with pytest.raises(Unpaired, match="mask of 'IMG_1'") as e:
        folder_pairs(tmp_path / 'images', tmp_path / 'masks')
    assert len(e.value.rows) == 2


@pytest.mark.parametrize('kind', ['npy', 'gif', 'NPY', 'nii.gz', 'json', 'txt'])
def test_masks_of_another_kind(tmp_path, kind):
    images, masks = pairs(tmp_path)
    (masks / 'b.png').rename(masks / f'b.{kind}')
    with pytest.raises(Unpaired, match=rf"mask of 'b' \('b.{kind}' is of a kind that is not read; save masks as PNG"):
        folder_pairs(images, masks)
    report = check_parts(dict(all=lambda: folder_pairs(images, masks)), classes(tmp_path, 'a\nb\n'), progress=False)[
        'all'
    ]
    assert (
        kinds(report) == ['missing']
        and f'b.{kind}' in report.faults[0][2]
        and 'save masks as PNG' in report.faults[0][2]
    )
    assert 'fetch' not in report.faults[0][2]


def test_images_of_another_kind_are_not_dropped(tmp_path):
    images, masks = pairs(tmp_path)
    (images / 'd.png').rename(images / 'd.HEIC')
    (masks / 'd.png').rename(masks / 'd.npy')  # both: nothing of the pair was seen
    put(images / 'e.png').rename(images / 'e.heic')
    (masks / 'note.txt').write_text('')
    np.save(images / 'a.npy', 0)
    said = r"image of 'd' \('d.HEIC'.*mask of 'd' \('d.npy'.*image of 'e'.*mask of 'e'"
    with pytest.raises(Unpaired, match=said) as e:
        folder_pairs(images, masks)
    assert e.value.rows['id'][:] == ['a', 'b', 'c', 'd', 'e']


def test_a_folder_called_like_an_image_and_what_is_hidden(tmp_path):
    images, masks = pairs(tmp_path)
    (images / 'x.png').mkdir()
    (images / '._a.png').write_bytes(b'')
    put(images / '.thumbs' / 'a.png')
    put(images / '__MACOSX' / 'a.png')
    assert len(folder_pairs(images, masks)) == 4


def test_masks_within_the_folder_of_images(tmp_path):
    for n in 'abc':
        put(tmp_path / f'{n}.png')
        put(tmp_path / 'masks' / f'{n}.png', spots(0, 1))
    assert folder_pairs(tmp_path, tmp_path / 'masks')['id'][:] == ['a', 'b', 'c']
    assert folder_pairs(tmp_path / 'masks', tmp_path)['id'][:] == ['a', 'b', 'c']


def test_braces_and_brackets_in_names(tmp_path):
    images, masks = pairs(tmp_path / '{0} [x]', ('a[1]', 'b{2}'))
    (masks / 'b{2}.png').rename(masks / 'b{2}.gif')
    with pytest.raises(Unpaired, match='b.2..gif') as e:
        folder_pairs(images, masks)
    assert why_missing(e.value.rows[1]['label']['path']).startswith("'b{2}.gif' is there")


# --- names that differ by a constant part
@pytest.mark.parametrize(
    'image,mask,said',
    [
        ('{}_image', '{}_label', '--image-suffix=_image --label-suffix=_label'),
        ('{}', '{}_mask', '--label-suffix=_mask'),
        ('{}_leftImg8bit', '{}_gtFine_labelIds', '--image-suffix=_leftImg8bit --label-suffix=_gtFine_labelIds'),
        ('img_{}', 'mask_{}', '--image-prefix=img_ --label-prefix=mask_'),
        ('{}', '{}.jpg', '--label-suffix=.jpg'),
        ('x{}', 'x{}-gt', '--label-suffix=-gt'),
    ],
)
def test_the_difference_in_names_is_found(tmp_path, image, mask, said):
    names = [f'{i:02}' for i in (1, 2, 3, 11, 12, 21)]
    dirs = pairs(tmp_path, names, image=image + '.png', mask=mask + '.png')
    with pytest.raises(Unpaired) as e:
        folder_pairs(*dirs)
    assert said in str(e.value) and 'fetch' not in str(e.value) and '6 of 6 images' in str(e.value)
    best = name_differences([image.format(n) for n in names], [mask.format(n) for n in names])[0]
    rows = folder_pairs(*dirs, heads=best.heads, tails=best.tails)
    assert rows['id'][:] == [('x' if image == 'x{}' else '') + n for n in names]
    report = check_parts(dict(all=lambda: folder_pairs(*dirs)), classes(tmp_path, 'a\nb\n'), progress=False)['all']
    assert kinds(report)[0] == 'names differ' and said in str(report)


def test_names_that_only_look_alike():
    assert (
        name_differences(['1', '2', '3'], ['11', '12', '13']) == []
        and name_differences(['cat'], ['dog']) == []
        and name_differences([], ['a']) == []
    )


def test_one_folder_with_both(tmp_path):
    for i in range(4):
        put(tmp_path / f'benign ({i}).png')
        put(tmp_path / f'benign ({i})_mask.png', spots(0, 1))
    with pytest.raises(ValueError, match=r'told apart by --label-suffix=_mask'):
        folder_pairs(tmp_path, tmp_path)
    assert folder_pairs(tmp_path, tmp_path, tails=('', '_mask'))['id'][:] == [f'benign ({i})' for i in range(4)]
    put(tmp_path / 'benign (2)_mask_1.png', spots(0, 1))
    with pytest.raises(Unpaired, match=r'benign \(2\)_mask_1.png.* is a second mask beside'):
        folder_pairs(tmp_path, tmp_path, tails=('', '_mask'))


def test_images_without_the_suffix_are_named(tmp_path):
    dirs = pairs(tmp_path, image='{}_image.png', mask='{}_label.png')
    put(dirs[0] / 'e.png')
    with pytest.raises(Unpaired, match="the name of 'e.png' does not fit NAME_image"):
        folder_pairs(*dirs, tails=('_image', '_label'))
    with pytest.raises(ValueError, match='5 files have names that are not NAME_photo'):
        folder_pairs(dirs[0], dirs[1], tails=('_photo', '_photo'))


def test_other_sub_folders(tmp_path):
    put(tmp_path / 'i' / 'x' / 'a.png')
    put(tmp_path / 'm' / 'y' / 'a.png', spots(0, 1))
    with pytest.raises(Unpaired, match="other sub-folders, such as 'x/a' and 'y/a'"):
        folder_pairs(tmp_path / 'i', tmp_path / 'm')


def test_a_file_for_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='it is a file'):
        folder_pairs(put(tmp_path / 'a.png'), tmp_path)


# --- F9: left and right
def named(*names, **kw):
    return LabelSpace('own', names, palette(len(names)), **kw)


@pytest.mark.parametrize(
    'names,want',
    [
        (('eye_left', 'eye_right'), ((0, 1),)),
        (('l_eye', 'r_eye'), ((0, 1),)),
        (('Right Lung', 'Left Lung'), ((1, 0),)),
        (('lung (left)', 'lung (right)'), ((0, 1),)),
        (('leftArm', 'rightArm'), ((0, 1),)),
        (('L_kidney', 'R_kidney'), ((0, 1),)),
        (('hand-R', 'hand-L'), ((1, 0),)),
        (('LKidney', 'RKidney'), ((0, 1),)),
        (('armLeft', 'armRight'), ((0, 1),)),
        (('leftarm', 'rightarm'), ((0, 1),)),
        (('LEFT.ARM', 'RIGHT.ARM'), ((0, 1),)),
        (('ctx-lh-insula', 'ctx-rh-insula'), ((0, 1),)),
        (('left', 'right'), ((0, 1),)),
        (('bright left', 'bright right'), ((0, 1),)),
        (('left eye of left twin', 'right eye of right twin'), ((0, 1),)),
        (('Left_Lung', 'right lung'), ((0, 1),)),
        (('L', 'R'), ()),
        (('left lung', 'Left_Lung', 'right lung'), ()),
        (('left turn', 'right lane'), ()),
        (('left eye', 'right eye upper'), ()),
        (('eye left', 'right eye'), ()),
        (('upright', 'bleft'), ()),
        (('l_eye', 'x'), ()),
        (('l_eye', 'right_eye'), ()),
        (('road', 'cleft'), ()),
    ],
    ids=str,
)
def test_pairs_by_names(names, want):
    space = named(*names)
    assert left_right(space) == want
    assert ('swaps no classes' in flip_lines(space)[0]) == (not want)


def test_what_has_no_sure_partner_is_said():
    assert (
        'left turn' in sides(named('left turn', 'road')).odd[0]
        and len(sides(named('left lung', 'Left_Lung', 'right lung')).odd) == 3
    )
    assert sides(named('road', 'l_eye', 'bright', 'leftover')).odd == ()


def test_published_sets_have_the_pairs_they_had():
    want = dict(
        lip=((14, 15), (16, 17), (18, 19)), cihp=((14, 15), (16, 17), (18, 19)), atr=((9, 10), (12, 13), (14, 15))
    )
    assert (
        {n: left_right(s) for n, s in LABEL_SPACES.items() if left_right(s)}
        == want
        == {n: b.flip_pairs for n, b in DATASETS.items() if b.flip_pairs}
    )
    assert not any(sides(s).odd for s in LABEL_SPACES.values())


@pytest.mark.parametrize('name', ['lip', 'atr', 'cihp'])
def test_a_list_called_lip_has_no_pairs_of_lip(tmp_path, name):
    assert left_right(classes(tmp_path, '\n'.join(f'c{i}' for i in range(20)), f'{name}.txt')) == ()


@pytest.mark.parametrize(
    'text,want',
    [
        ('a, 0, mirror=b\nb, 1\nc, 2\n', ((0, 1),)),
        ('a, 0, mirror=b\nb, 1, mirror=a\n', ((0, 1),)),
        ('a; 0; MIRROR = B\nB; 1\n', ((0, 1),)),
        ('left x, mirror=none\nright x\n', ()),
        ('left x\nright x\nup, mirror=down\ndown\n', ((2, 3),)),
        ('a, 0, #ff0000, "mirror=b, c"\n"b, c", 1\n', ((0, 1),)),
        ('left x\nright x\n', None),
    ],
)
def test_mirrors_of_a_class_list(tmp_path, text, want):
    space = classes(tmp_path, text)
    assert space.mirror == want and (want is None or left_right(space) == want)
    again = LabelSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space and again.mirror == space.mirror and again.implicit_ignore == space.implicit_ignore


@pytest.mark.parametrize(
    'text,said',
    [
        ('a, mirror=x\nb\n', "line 1: mirror=x names no class"),
        ('a, mirror=a\nb\n', 'line 1: .*itself'),
        ('a, mirror=b\nb, mirror=c\nc\n', 'another mirror'),
        ('a, mirror=c\nb, mirror=c\nc\n', 'another mirror'),
        ('a\nvoid, 5, mirror=a\n', 'line 2: void is no class'),
        ('a, mirror=\nb\n', "'mirror=' is neither"),
        ('a, mirror=b, mirror=c\nb\nc\n', '2 mirrors'),
    ],
)
def test_bad_mirrors(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        classes(tmp_path, text)


def test_old_label_spaces_are_read_and_equal():
    for space in LABEL_SPACES.values():
        data = space.to_json()
        assert (
            set(data) == {'name', 'classes', 'palette', 'raw_to_train', 'ignore'}
            and LabelSpace.from_json(data) == space
        )
    assert named('a', 'b') != named('a', 'b', mirror=((0, 1),)) and named('a', 'b') == named(
        'a', 'b', implicit_ignore=(255,)
    )


@pytest.mark.parametrize(
    'new',
    [
        dict(name=5),
        dict(classes='cat'),
        dict(classes=[1, 2]),
        dict(classes=None),
        dict(palette=3),
        dict(palette=['red', 'blue']),
        dict(palette=[[1.5, 0, 0]] * 2),
        dict(raw_to_train=[1]),
        dict(raw_to_train={'x': 0}),
        dict(raw_to_train={0: None}),
        dict(ignore='255x'),
        dict(ignore=None),
        dict(ignore=2.5),
        dict(ignore=True),
        dict(mirror=5),
        dict(mirror=[[0]]),
        dict(mirror=[[0, 2]]),
        dict(mirror=[[0, 1], [1, 0]]),
        dict(mirror=[[0, 0]]),
        dict(implicit_ignore=5),
        dict(implicit_ignore='x'),
        dict(colour=1),
    ],
    ids=str,
)
def test_label_spaces_of_wrong_types(new):
    with pytest.raises(ValueError, match='abel space|LabelSpace'):
        LabelSpace.from_json({**named('a', 'b').to_json(), **new})
    for data in None, [], 'x', {}, dict(name='a'):
        with pytest.raises(ValueError, match='abel space'):
            LabelSpace.from_json(data)


# --- F19: class lists as people write them
@pytest.mark.parametrize(
    'text,names,encoded',
    [
        ('__ignore__\n_background_\ncat\n', ('_background_', 'cat'), {0: 0, 1: 1, 255: 255}),
        ('__ignore__, -1\n_background_, 0\ncat, 1\n', ('_background_', 'cat'), {0: 0, 1: 1, 255: 255}),
        ('a;0\nb;255\n', ('a', 'b'), {0: 0, 255: 1}),
        ('a\t3\nb\t1\n', ('a', 'b'), {3: 0, 1: 1}),
        ('ignore, 0\na, 1\nb, 2\n', ('a', 'b'), {0: 255, 1: 0, 2: 1}),
        ('void, -1\na\nb\n', ('a', 'b'), {0: 0, 255: 255}),
        ("'a', 0\n'b', 1\n", ('a', 'b'), {0: 0, 1: 1}),
        ('"a;b", 0\nc, 1\n', ('a;b', 'c'), {0: 0, 1: 1}),
        (',,\na\n\n ; \nb\n', ('a', 'b'), {0: 0, 1: 1}),
        ('a, 0,\nb, 1,\n', ('a', 'b'), {0: 0, 1: 1}),
        ('A\na\nB\n', ('A', 'a', 'B'), {2: 2}),
        ('"name"\nb\n', ('name', 'b'), {1: 1}),
        ('class 0\nclass 1\n', ('class 0', 'class 1'), {1: 1}),
        ('2 wheeler\ncar\n', ('2 wheeler', 'car'), {1: 1}),
        ('a\rb\r', ('a', 'b'), {1: 1}),
        ('a, 2147483647\nb, 0\n', ('a', 'b'), {0: 1}),
    ],
)
def test_lists_that_are_understood(tmp_path, text, names, encoded):
    space = classes(tmp_path, text)
    assert space.classes == names
    for raw, train in encoded.items():
        assert space.raw_to_train[raw] == train


@pytest.mark.parametrize(
    'text,said',
    [
        ('wall, 0, 1\nb, 2\n', "line 1: 'wall' has 2 ids, 0 and 1"),
        ('wall, 64, 128, 0\n', 'write #408000'),
        ('a, #ff0000, #00ff00\n', '2 colours'),
        ('Wall\nwall\n', "line 2: 'wall' differs from 'Wall'"),
        (', 5\na, 0\n', 'line 1: .*has no name'),
        ('"a, 0\nb, 1\n', 'line 1: .*cannot be taken apart'),
        ('name,id\nwall,0\n', "'name,id' seems to be a header"),
        ('class\nwall\n', 'seems to be a header'),
        ('id;name\n0;wall\n', 'seems to be a header'),
        ('name,r,g,b\nwall,1,2,3\n', 'seems to be a header'),
        ('0, wall\n1, sky\n', 'the id stands before the name; write wall, 0'),
        ('a, 0x10\nb, 1\n', 'write 16'),
        ('a, 1.0\nb, 2\n', 'write 1'),
        ('a, -1\nb, 1\n', "'-1' is neither"),
        ('a, -5\nb, 1\n', 'neither an id'),
        ('a, 2147483648\nb, 1\n', 'more than a mask can hold'),
        ('a, ' + '9' * 6000 + '\nb, 1\n', 'more than a mask can hold'),
        ('0 wall\n1 sky\n', 'write wall, 0'),
        ('0: wall\n1: sky\n', 'write wall, 0'),
        ('wall 0\nsky 1\n', 'write wall, 0'),
        ('wall: 0\nsky: 1\n', 'write wall, 0'),
        ('1. wall\n2. sky\n', 'write wall, 1'),
        ('- wall\n- sky\n', 'YAML or Markdown'),
        ('door;double door\nwall\n', "'double door' is neither"),
        ('a # first\nb\n', 'comment'),
        ('ignore\na\n', 'needs the id'),
        ('a, 0\nb\n', 'line 2 would be: b, ID'),
        ('a, 0\nvoid, 0\n', 'id 0'),
        ('a, 255\n__ignore__\n', 'id 255'),
        ('void, 0\n', 'names no class'),
    ],
)
def test_lists_that_are_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as e:
        classes(tmp_path, text)
    assert 'classes.txt' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'text,names',
    [
        ('["a","b"]', ('a', 'b')),
        ('{"1":"b","0":"a"}', ('a', 'b')),
        ('{"a":0,"b":1}', ('a', 'b')),
        ('{"id2label":{"0":"a","1":"b"},"x":5}', ('a', 'b')),
        ('{"0":"a","1":"b","255":"void"}', ('a', 'b')),
    ],
)
def test_json_lists(tmp_path, text, names):
    assert classes(tmp_path, text, 'c.json').classes == names


@pytest.mark.parametrize(
    'text',
    [
        '5',
        'null',
        '"a"',
        '[1]',
        '[{"id":0,"name":"a"}]',
        '{"x":"a"}',
        '{"0":null}',
        '{"0":"a","0":"b"}',
        '{"a":0,"b":0}',
        '{"-1":"a"}',
        '{"1.5":"a"}',
        '{"99999999999":"a"}',
        '{',
        '',
        '{"0":""}',
        '[]',
    ],
)
def test_json_that_is_no_list(tmp_path, text):
    with pytest.raises(ValueError, match='c.json'):
        classes(tmp_path, text, 'c.json')


def test_files_that_are_no_list(tmp_path):
    for name in 'c.yaml', 'c.yml', 'c.xml':
        with pytest.raises(ValueError, match='is no class list'):
            classes(tmp_path, 'a: 0\n', name)
    with pytest.raises(ValueError, match='is a folder'):
        space_from_file(tmp_path)
    for code in 'utf-16-le', 'latin-1', 'utf-32':
        with pytest.raises(ValueError, match='cannot be read'):
            classes(tmp_path, 'ä\nb\n', code=code)
    assert classes(tmp_path, 'ä\nb\n', code='utf-16').classes == ('ä', 'b') and classes(
        tmp_path, 'ä\nb\n', code='utf-8-sig'
    ).classes == ('ä', 'b')
    assert classes(tmp_path, 'a\u0308\nb\n').classes == ('ä', 'b')


def test_as_many_colours_as_classes(tmp_path):
    many = '\n'.join(f'c{i}x, {i}, #{i:06x}' for i in range(2000))  # more than there are colours that stay apart
    assert classes(tmp_path, many).num_classes == 2000


# --- tables
def table(root, text, name='t.csv', code='utf-8'):
    (root / name).write_bytes(text.encode(code))
    return csv_pairs(root / name)


@pytest.fixture
def tree(tmp_path):
    pairs(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'text',
    [
        'image,label\nimages\\a.png,masks\\a.png\n',
        'Image,LABEL\nimages/a.png,masks/a.png\n',
        'image ; label\nimages/a.png;masks/a.png\n\n;\n',
        'image,label\r\nimages/a.png,masks/a.png\r\n',
        'image,label,\nimages/a.png,masks/a.png,\n',
    ],
)
def test_tables_that_are_understood(tree, text):
    for code in 'utf-8', 'utf-16':
        assert Path(table(tree, text, code=code)[0]['label']['path']).is_file()


def test_home_and_whole_paths(tree, monkeypatch):
    monkeypatch.setenv('HOME', str(tree))
    monkeypatch.setenv('USERPROFILE', str(tree))
    (tree / 'sub').mkdir()
    assert len(table(tree / 'sub', f'image,label\n{"~"}/images/a.png,{tree}/masks/a.png\n')) == 1
    with pytest.raises(Unpaired, match='not there'):
        table(tree, 'image,label\n~nobody/a.png,masks/a.png\n')


@pytest.mark.parametrize(
    'text,said',
    [
        ('photo,mask\nimages/a.png,masks/a.png\n', "has no column 'image', but photo, mask"),
        ('images/a.png,masks/a.png\nimages/b.png,masks/b.png\n', 'the first line must be the names'),
        ('image|label\nimages/a.png|masks/a.png\n', 'separated by commas'),
        ('image label\nimages/a.png masks/a.png\n', 'separated by commas'),
        ('image,label\nC:\\d\\a.png,masks/a.png\n', 'a path of Windows'),
        ('image,label\nhttps://x.org/a.png,masks/a.png\n', 'is a URL'),
        ('image,label\nimages,masks/a.png\n', 'is a folder'),
        ('image,label\nimages/a.png,masks/a,b.png\n', 'more fields than columns'),
        ('', 'no rows'),
        ('\n\n', 'no rows'),
        ('image,label\n,masks/a.png\n', "line 2: column 'image' is empty"),
        ('image,label\n\n\nimages/a.png,\n', "line 4: column 'label' is empty"),
        ('image,label\nimages/a.png\n', "column 'label' is empty"),
    ],
)
def test_tables_that_are_refused(tree, text, said):
    with pytest.raises(ValueError, match=said) as e:
        table(tree, text)
    assert 't.csv' in str(e.value)


def test_json_tables_that_are_refused(tree):
    for text, said in (
        ('{"image":5,"label":"masks/a.png"}\n', 'holds .5., which is no path'),
        ('{"image":null,"label":"x"}\n', 'is empty'),
        ('{"image":["a"],"label":"x"}\n', 'no path'),
        ('[{"image":"a","label":"b"}]\n', 'line 1 is no object'),
        ('{"image"\n', 'a JSON object a line'),
    ):
        with pytest.raises(ValueError, match=said):
            table(tree, text, 't.jsonl')


def test_files_that_are_no_table(tree):
    with pytest.raises(ValueError, match='is a folder'):
        csv_pairs(tree)
    with pytest.raises(ValueError, match='cannot be read'):
        csv_pairs(tree / 'images' / 'a.png')
    with pytest.raises(ValueError, match='cannot be read'):
        table(tree, 'image,label\nä,b\n', code='latin-1')
    with pytest.raises(ValueError, match='cannot be read'):
        table(tree, 'image,label\n"' + 'x' * 200000 + '",b\n')


def test_rows_twice(tree):
    rows = table(tree, 'image,label\n' + 'images/a.png,masks/a.png\n' * 2 + 'images/b.png,masks/b.png\n')
    report = check(rows, classes(tree, 'a\nb\n'))
    assert kinds(report) == ['twice'] and len(rows) == 3


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may read everything')
def test_a_folder_that_may_not_be_read(tree):
    (tree / 'images' / 'shut').mkdir(mode=0)
    with pytest.raises(OSError, match='shut'):
        folder_pairs(tree / 'images', tree / 'masks')


def test_a_column_of_parts_is_not_dropped_in_silence(tmp_path):
    "Whoever keeps train and val in one table is told that they are taken together."
    for name in 'ab':
        Image.new('RGB', (4, 3)).save(tmp_path / f'{name}.png')
        Image.new('L', (4, 3)).save(tmp_path / f'{name}_m.png')
    (tmp_path / 't.csv').write_text('image,label,split\na.png,a_m.png,train\nb.png,b_m.png,val\n')
    with pytest.warns(UserWarning, match="column 'split' .train, val. is not read.*--test-pairs"):
        assert len(csv_pairs(tmp_path / 't.csv')) == 2
    (tmp_path / 'one.csv').write_text('image,label,split\na.png,a_m.png,train\nb.png,b_m.png,train\n')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        csv_pairs(tmp_path / 'one.csv')
