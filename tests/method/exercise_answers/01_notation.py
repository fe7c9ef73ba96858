"Typical wrong answers to the exercise of lesson 01_notation."

WRONG = [
    # the classes of the whole batch, for every image
    """def classes_present(pred, num_classes):
    return torch.stack([torch.isin(torch.arange(num_classes), pred)] * len(pred))
""",
    # the number of pixels instead of whether there is one
    """def classes_present(pred, num_classes):
    return (pred[:, None, :] == torch.arange(num_classes)[:, None]).sum(-1)
""",
    # an id that is no class raises
    """def classes_present(pred, num_classes):
    return torch.nn.functional.one_hot(pred, num_classes).any(1)
""",
]
