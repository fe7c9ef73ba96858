"Typical wrong answers to the exercise of nbs/1_method/08_deletion.ipynb."

WRONG = [
    # the variance of a sample instead of a population: nan for a single pixel
    '''def loss_changes(losses, losses_without, label, num_classes):
    changes = torch.zeros(2, num_classes)
    for k in range(num_classes):
        true = label == k
        if not true.any(): continue
        changes[0,k] = losses_without[true].mean() - losses[true].mean()
        changes[1,k] = losses_without[true].var() - losses[true].var()
    return changes''',
    # before minus after
    '''def loss_changes(losses, losses_without, label, num_classes):
    changes = torch.zeros(2, num_classes)
    for k in range(num_classes):
        true = label == k
        if not true.any(): continue
        before, after = losses[true], losses_without[true]
        changes[0,k] = before.mean() - after.mean()
        changes[1,k] = before.var(unbiased=False) - after.var(unbiased=False)
    return changes''',
    # the variance of the changes, not the change of the variance
    '''def loss_changes(losses, losses_without, label, num_classes):
    changes = torch.zeros(2, num_classes)
    for k in range(num_classes):
        true = label == k
        if not true.any(): continue
        change = (losses_without-losses)[true]
        changes[0,k] = change.mean()
        changes[1,k] = change.var(unbiased=False)
    return changes''',
]
