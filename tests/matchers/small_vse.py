"""Small networks of `itm_vse`, from a configuration or by hand, and batches for them."""

from __future__ import annotations

import tiny
import torch

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.encoders.image import ImageConfig
from lavis_itm_plugins.encoders.text import TextConfig
from lavis_itm_plugins.encoders.vocabulary import SPECIAL, Vocabulary
from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher

WORDS = [*SPECIAL, "a", "red", "green", "dog", "cat", "ball"]


def configured(root, folder, **model):
    """A registered configuration of the tiny project, with keys of the model section set."""
    content = tiny.project(root, folder)
    content["model"].update(model)
    return ProjectConfig(tiny.write_project(folder / "x.yaml", content))


def make(words=WORDS, *, dim=8, embed_dim=12, **keys):
    """A network on features of size `dim`."""
    torch.manual_seed(0)
    image, text = ImageConfig(dim=dim, dropout=0.5), TextConfig(word_dim=6, hidden=5)
    return VseMatcher(VseConfig(embed_dim=embed_dim, image=image, text=text, **keys), Vocabulary(words)).eval()


def batch_of(image_ids, *, dim=8, **more):
    captions = [f"a {'red' if n % 2 else 'green'} {('dog', 'cat', 'ball')[n % 3]}" for n in range(len(image_ids))]
    torch.manual_seed(1)
    return {
        "image": torch.randn(len(image_ids), 3, dim),
        "text_input": captions,
        "image_id": torch.tensor(image_ids),
        **more,
    }
