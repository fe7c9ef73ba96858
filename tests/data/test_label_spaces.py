"""The published label spaces: what the JSON file says, and what it says today is what it said."""

import hashlib, json
from pathlib import Path
import numpy as np, pytest
from idrnet_nb.data import label_spaces
from idrnet_nb.data.label_spaces import LABEL_SPACES, published_space

FILE = Path(label_spaces.__file__).with_name('label_spaces.json')
ENTRIES = json.loads(FILE.read_text(encoding='utf-8'))
# of names, colours and ids in their order: a trained net's channels and the colours in figures hang on them
DIGESTS = dict(
    camvid='a14e5285451fe551',
    stanford_background='2295a2a28f11143f',
    ccp16='1ed1c40f4dd05f89',
    cityscapes='5bc25b5c860164fa',
    ade20k='e8fff55847c64f0f',
    coco_stuff_10k='86e5ba13256a4a30',
    coco_stuff_164k='51b9c8b1e004bce0',
    pascal_voc='b965fe899fefbede',
    pascal_context_59='c8ae49623787c254',
    pascal_context_60='c8159c3bfa9e12fb',
    lip='be8427ea84d80d20',
    cihp='8ce87143cedc72fa',
    atr='1a5521050980b3ec',
    ccp59='db4da88a862b4752',
)


def digest(space):
    fields = space.classes, space.palette, list(space.raw_to_train.items()), space.ignore, space.mirror
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


def test_no_space_has_changed():
    assert {name: digest(space) for name, space in LABEL_SPACES.items()} == DIGESTS


@pytest.mark.parametrize('name', ENTRIES)
def test_an_entry_says_all_and_no_more(name):
    entry, space = ENTRIES[name], LABEL_SPACES[name]
    assert {'classes', 'raw_ids', 'ignored_raw_ids'} <= {*entry} <= {'classes', 'raw_ids', 'ignored_raw_ids', 'colours'}
    assert space.classes == tuple(entry['classes']) and space.name == name
    ignored = {raw for raw, train in space.raw_to_train.items() if train == space.ignore}
    assert ignored == {*entry['ignored_raw_ids']}
    assert {*space.raw_to_train.values()} - {space.ignore} == {*range(space.num_classes)}
    for raw, train in space.raw_to_train.items():
        assert space.encode(np.array([[raw]])).tolist() == [[train]]


@pytest.mark.parametrize(
    'wrong,word',
    [
        (dict(raw_ids=[1]), '2 classes need as many raw_ids, these are 1'),
        (dict(raw_ids=[1, 2, 3]), 'these are 3'),
        (dict(raw_ids=[-1, 2]), 'from 0 up'),
        (dict(classes=['a', 'a']), 'occur twice'),
        (dict(colours=['#000000']), '2 classes but 1 colours'),
        (dict(colours=['#00000', '#000000']), 'hex'),
    ],
)
def test_a_wrong_entry_is_refused(wrong, word):
    entry = dict(classes=['a', 'b'], raw_ids=0, ignored_raw_ids=[255])
    with pytest.raises(ValueError, match=word):
        published_space('x', **{**entry, **wrong})
