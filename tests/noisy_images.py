"""A dataset that uses every random generator there is, for tests of what must not disturb or repeat them."""

import random
import numpy as np
import torch


class NoisyImages(torch.utils.data.Dataset):
    "Images that draw from python, numpy and torch, and know their epoch only as an attribute."

    def __init__(self, data, scale=1):
        self.data, self.scale, self.epoch = data, scale, 0

    def __len__(self):
        return len(self.data)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        image, label = self.data[i]
        noise = random.random() + np.random.rand() + torch.rand(1) + 10 * self.epoch
        return (image + self.scale * noise).clamp(0, 255), label
