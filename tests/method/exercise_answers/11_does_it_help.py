"Typical wrong answers to the exercise of lesson 11_does_it_help."

WRONG = [
    # the spread of the scores instead of the spread of the differences
    """def gain_interval(a, b):
    t = [12.706, 4.303, 3.182, 2.776, 2.571]
    mean = (a - b).mean()
    half = t[len(a) - 2] * (a.var() + b.var()).sqrt() / len(a) ** 0.5
    return torch.stack([mean, mean - half, mean + half])
""",
    # 1.96, as if there were many seeds
    """def gain_interval(a, b):
    d = a - b
    half = 1.96 * d.std() / len(d) ** 0.5
    return torch.stack([d.mean(), d.mean() - half, d.mean() + half])
""",
    # divides by s instead of s-1
    """def gain_interval(a, b):
    t = [12.706, 4.303, 3.182, 2.776, 2.571]
    d = a - b
    half = t[len(d) - 2] * d.std(unbiased=False) / len(d) ** 0.5
    return torch.stack([d.mean(), d.mean() - half, d.mean() + half])
""",
    # the wrong row of the t values
    """def gain_interval(a, b):
    t = [12.706, 4.303, 3.182, 2.776, 2.571]
    d = a - b
    half = t[len(d) - 1] * d.std() / len(d) ** 0.5
    return torch.stack([d.mean(), d.mean() - half, d.mean() + half])
""",
]
