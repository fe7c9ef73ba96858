"Typical wrong answers to the exercise of lesson 04_spatial_context."

WRONG = [
    # the row is bent into a ring: no zeros outside
    """def dilated(row, kernel, dilation):
    return kernel[0]*row.roll(dilation) + kernel[1]*row + kernel[2]*row.roll(-dilation)
""",
    # the kernel is mirrored
    """def dilated(row, kernel, dilation):
    padded = torch.nn.functional.pad(row, (dilation, dilation))
    before, after = padded[:len(row)], padded[2*dilation:]
    return kernel[2]*before + kernel[1]*row + kernel[0]*after
""",
    # no zeros at the ends, so the result is shorter than the row
    """def dilated(row, kernel, dilation):
    d = dilation
    return kernel[0]*row[:-2*d] + kernel[1]*row[d:-d] + kernel[2]*row[2*d:]
""",
    # the dilation is not used
    """def dilated(row, kernel, dilation):
    padded = torch.nn.functional.pad(row, (1, 1))
    return kernel[0]*padded[:-2] + kernel[1]*row + kernel[2]*padded[2:]
""",
]
