"Typical wrong answers to the exercise of lesson 5, `gather_values`."

WRONG = [
    # the products are not divided by the root of d
    '''
def gather_values(query, key, value):
    weights = (query.T @ key).softmax(1)
    return value @ weights.T
''',
    # they are divided by d
    '''
def gather_values(query, key, value):
    weights = (query.T @ key / query.shape[0]).softmax(1)
    return value @ weights.T
''',
    # the softmax runs over the queries
    '''
def gather_values(query, key, value):
    weights = (query.T @ key / query.shape[0] ** 0.5).softmax(0)
    return value @ weights.T
''',
    # weights that do not add up to one
    '''
def gather_values(query, key, value):
    weights = (query.T @ key / query.shape[0] ** 0.5).exp()
    return value @ weights.T
''',
]
