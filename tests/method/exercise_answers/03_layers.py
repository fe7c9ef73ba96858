"Typical wrong answers to the exercise of lesson 3, `labelled_loss`."

WRONG = [
    # the mean is taken over all pixels, the ignored ones included
    '''
def labelled_loss(logits, label):
    labelled = label != 255
    log_prob = logits.log_softmax(0)
    losses = -log_prob.gather(0, label.clamp(max=len(logits) - 1)[None])[0]
    return (losses * labelled).mean()
''',
    # the softmax runs over the pixels
    '''
def labelled_loss(logits, label):
    labelled = label != 255
    log_prob = logits.log_softmax(1)[:, labelled]
    losses = -log_prob.gather(0, label[labelled][None])
    return losses.sum() / labelled.sum().clamp(min=1)
''',
    # a mean over nothing is nan
    '''
def labelled_loss(logits, label):
    labelled = label != 255
    log_prob = logits.log_softmax(0)[:, labelled]
    return -log_prob.gather(0, label[labelled][None]).mean()
''',
    # the softmax is written out, and overflows
    '''
def labelled_loss(logits, label):
    labelled = label != 255
    prob = logits.exp() / logits.exp().sum(0)
    losses = -prob[:, labelled].gather(0, label[labelled][None]).log()
    return losses.sum() / labelled.sum().clamp(min=1)
''',
]
