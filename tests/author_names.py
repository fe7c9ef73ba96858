"""The authors' parameter names, in ours."""
import re

RULES = [ # (theirs, ours), tried in order; the rest of a name is translated by the kind of brick
    (r'class_relations_mean', 'refiner.relation_mean'), (r'class_relations_var', 'refiner.relation_var'),
    (r'dl_cls_representations', 'refiner.memory'), (r'selected_classes_counter', 'refiner.count'),
    (r'bottleneck\.', 'squeeze.'), (r'decoder_stage1\.', 'coarse.'), (r'decoder_stage2\.', 'final.'), (r'auxiliary_decoder\.', 'aux.'),
    (r'coarse_context_module\.bottleneck\.', 'place.mix.'), (r'coarse_context_module\.global_branch\.', 'place.whole+1.'),
    (r'coarse_context_module\.branches\.(\d+)\.', r'place.branches.\1+1.'),
    (r'coarse_context_module\.parallel_branches\.(\d+)\.', r'place.branches.\1.'),
    (r'lateral_convs\.(\d+)\.', r'fpn.laterals.\1.'), (r'fpn_convs\.(\d+)\.', r'fpn.smooth.\1.'),
    (r'coarsecontext_refiner_(?:before|after)\.', 'attend.'), (r'idcontext_refiner\.', 'refiner.refiner.')]

def ours(name):
    "Our name of the authors' parameter `name`; KeyError if it is none of theirs."
    for theirs,mine in RULES:
        if m := re.match(theirs, name): out, rest = m.expand(mine), name[m.end():]; break
    else: raise KeyError(f'{name} is no name of an IDRNet head')
    if not rest: return out
    rest = re.sub(r'^(query|key)_project\.(\d)\.', r'\1.\2.', rest)
    rest = re.sub(r'^(value|out)_project\.', r'\1.', rest)
    shift = 1 if '+1.' in out else 0
    parts = (out.replace('+1.', '.') + rest).split('.')
    part = int(parts[-2]) - shift
    head = parts[0] in ('coarse','final','aux')
    parts[-2] = {0:'conv', 1:'norm', 4:'score'}[part]
    if head and part in (0,1): parts.insert(-2, 'conv')
    return '.'.join(parts)
