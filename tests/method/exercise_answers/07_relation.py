"Typical wrong answers to the exercise of lesson 07_relation."

WRONG = [
    # the column instead of the row: the direction of the story
    """def gather_weights(relation, present, i):
    column = relation[:, i]
    kept = present & (column > 0)
    if not kept.any():
        return present / present.sum()
    return column.masked_fill(~kept, -torch.inf).softmax(0)
""",
    # nan where no entry is above 0
    """def gather_weights(relation, present, i):
    row = relation[i]
    return row.masked_fill(~present | (row <= 0), -torch.inf).softmax(0)
""",
    # zeros count, as in the variance matrix
    """def gather_weights(relation, present, i):
    row = relation[i]
    kept = present & (row >= 0)
    if not kept.any():
        return present / present.sum()
    return row.masked_fill(~kept, -torch.inf).softmax(0)
""",
    # masked after the softmax: the weights do not sum to 1
    """def gather_weights(relation, present, i):
    row = relation[i]
    return row.softmax(0) * (present & (row > 0))
""",
    # an absent class takes the weight and is then removed: 0/0
    """def gather_weights(relation, present, i):
    row = relation[i].masked_fill(relation[i] <= 0, -1e16)
    weights = row.softmax(0) * present
    return weights / weights.sum()
""",
]
