"Typical wrong answers to the exercise of nbs/1_method/09_idr.ipynb."

WRONG = [
    # the two blocks of the weight exchanged
    '''def project_parts(weight, feats, memory, pred):
    c = len(feats)
    T = memory @ weight[:,:c].T
    return weight[:,c:] @ feats + T[pred].T''',
    # the first rows instead of those of the pixels' classes
    '''def project_parts(weight, feats, memory, pred):
    c = len(feats)
    T = memory @ weight[:,c:].T
    return weight[:,:c] @ feats + T[:len(pred)].T''',
    # one row of the lookup for all pixels: that of the first pixel
    '''def project_parts(weight, feats, memory, pred):
    c = len(feats)
    T = memory @ weight[:,c:].T
    return weight[:,:c] @ feats + T[pred[0]][:,None]''',
]
