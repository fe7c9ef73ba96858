"Typical wrong answers to the exercise of lesson 10_desk_example."

WRONG = [
    # entries without true pixels shrink
    """def row_after(row, change, valid, momentum):
    return (1 - momentum) * row + momentum * change * valid
""",
    # old and new weights exchanged
    """def row_after(row, change, valid, momentum):
    return torch.where(valid, momentum * row + (1 - momentum) * change, row)
""",
    # adds the change instead of averaging
    """def row_after(row, change, valid, momentum):
    return torch.where(valid, row + momentum * change, row)
""",
]
