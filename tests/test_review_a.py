"What a reviewer tried with data of other people's customs: class lists, palettes, images that hold little."
import pytest
from idrnet_nb.data import space_from_file

def listed(tmp_path, text, name='classes.txt'):
    (tmp_path/name).write_text(text, encoding='utf-8')
    return space_from_file(tmp_path/name)

@pytest.mark.parametrize('text,words', [
    ('names:\n  0: a\n  1: b\n', r"line 1: 'names:' ends with a colon"),
    ('0: a\n1: b\n', 'write a, 0'), ('a|0\nb|1\n', 'write a, 0'), ('0|a\n1|b\n', 'write a, 0'), ('[0] a\n[1] b\n', 'write a, 0'),
    ('| a | 0 |\n| b | 1 |\n', 'write a, 0'), ('a，0\nb，1\n', 'write a, 0'), ('a -> 0\nb -> 1\n', 'write a, 0'),
    ('0 -> a\n1 -> b\n', 'write a, 0'), ('a 255 0 0\nb 0 255 0\n', 'write a, #ff0000'), ('255 0 0 a\n0 255 0 b\n', 'write a, #ff0000'),
    ('a: (255,0,0)\nb: (0,255,0)\n', 'write a, #ff0000'), ('background:0,0,0::\ncat:128,0,0::\n', 'write background, #000000'),
    ('64 128 64\tAnimal\n192 0 128\tArchway\n', 'write Animal, #408040'), ('a,0,255,0,0\nb,1,0,255,0\n', 'write 0, #ff0000'),
    ('id name\n0 a\n1 b\n', 'seems to be a header'), ('Pixel Value, Class\n0, a\n1, b\n', 'seems to be a header'),
    ('class_id,class_name\n0,a\n', 'seems to be a header'), ('name,red,green,blue\na,255,0,0\n', 'seems to be a header'),
    ('a, b, c', 'write one name a line'), ("['a', 'b']", 'write one name a line'),
    ('a mirror=b\nb\n', 'a comma before it'), ('// mine\na\nb\n', 'begin it with #'), ('#ff0000 a\n', 'are comments'),
    ('a\nb\na\n', r"line 3: 'a' is named twice \(line 1 as well\)")])
def test_a_class_list_of_another_form_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): listed(tmp_path, text)

@pytest.mark.parametrize('text,names', [
    ('lane 1\nlane 2\n', ('lane 1','lane 2')), ('0\n1\n', ('0','1')), ('3d print\n2d print\n', ('3d print','2d print')),
    ('red car\nblue car\n', ('red car','blue car')), ('red\ngreen\nblue\n', ('red','green','blue')), ('train\nstuff\n', ('train','stuff')),
    ('code\nidx\n', ('code','idx')), ('person/head\nperson|arm\n', ('person/head','person|arm')), ('background\nclass 1\nclass 2\n', ('background','class 1','class 2'))])
def test_plain_names_stay_names(tmp_path, text, names): assert listed(tmp_path, text).classes==names

def test_label2id_within_a_config_is_read(tmp_path):
    assert listed(tmp_path, '{"label2id": {"a": 0, "b": 3}}', 'c.json').raw_to_train=={255:255, 0:0, 3:1}

def test_a_class_list_in_another_encoding_is_named(tmp_path):
    (tmp_path/'c.txt').write_bytes('Straße\n'.encode('latin1'))
    with pytest.raises(ValueError, match="c.txt.*no text in UTF-8, save it so"): space_from_file(tmp_path/'c.txt')
