"Typical wrong answers to the exercise of lesson 06_grouping."

WRONG = [
    # the plain mean: how sure a pixel is does not count
    """def class_vectors(feats, logits, pred):
    member = (pred == torch.arange(len(logits))[:, None]).float()
    weights = member / member.sum(-1, keepdim=True).clamp(min=1)
    return weights @ feats.T
""",
    # softmax over all pixels, masked afterwards: the weights of a class do not sum to 1
    """def class_vectors(feats, logits, pred):
    member = pred == torch.arange(len(logits))[:, None]
    weights = logits.softmax(-1) * member
    return weights @ feats.T
""",
    # softmax over the classes
    """def class_vectors(feats, logits, pred):
    member = pred == torch.arange(len(logits))[:, None]
    weights = logits.softmax(0) * member
    return weights @ feats.T
""",
    # a class without pixels becomes nan
    """def class_vectors(feats, logits, pred):
    member = pred == torch.arange(len(logits))[:, None]
    weights = logits.masked_fill(~member, -torch.inf).softmax(-1)
    return weights @ feats.T
""",
    # exp of a large logit overflows
    """def class_vectors(feats, logits, pred):
    member = pred == torch.arange(len(logits))[:, None]
    weights = logits.exp() * member
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return weights @ feats.T
""",
]
