"Typical wrong answers to the exercise of lesson 02_toy_world."

WRONG = [
    # accuracy instead of IoU
    """def local_iou(q, r):
    return q*r + (1-q)*(1-r)
""",
    # true positives are counted twice in the union
    """def local_iou(q, r):
    return (q*r/(q+r) + (1-q)*(1-r)/(2-q-r))/2
""",
    # a class that occurs nowhere counts as 0
    """def local_iou(q, r):
    ious = []
    for predicted, true in ((q, r), (1-q, 1-r)):
        union = predicted + true - predicted*true
        ious.append(predicted*true/union if union > 0 else 0)
    return sum(ious)/2
""",
    # equation (W1), whatever the coin
    """def local_iou(q, r):
    return (q/(1+q) + (1-q)/(2-q))/2
""",
]
