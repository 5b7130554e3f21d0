"""The `model` section of `itm_coder`: each part of the method is a key that can be switched off."""

from __future__ import annotations

from dataclasses import dataclass, field

from lavis_itm_plugins.concepts import ConceptRecipe
from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.losses.diversity_checks import FORMS, KINDS
from lavis_itm_plugins.methods.coder_branches import QUERIES
from lavis_itm_plugins.methods.method import MethodConfig

SCORED = ("online", "momentum", "best")


@dataclass(frozen=True)
class DclConfig:
    """`dcl`: the diversity-sensitive contrastive loss of both branches."""

    weighting: str = setting("std", choices=KINDS, help="how uneven negatives are weighted")
    beta: float = setting(0.5, help="strength of the weighting; 0 is plain InfoNCE")
    form: str = setting("nce", choices=FORMS)
    temperature: float | None = setting(None, above=0, help="nce; base_loss.temperature when not given, else 0.05")
    slope: float = setting(90.0, above=0, help="lse")
    offset: float = setting(0.5, help="lse")
    keys: str = setting(
        "momentum", choices=("momentum", "online"), help="which encoders make the keys of the batch itself"
    )
    intra_weight: float = setting(0.0, low=0, help="also image against images, caption against captions")
    base_weight: float = setting(0.0, low=0, help="also base_loss over the batch, gradient to both sides")


@dataclass(frozen=True)
class DictionaryConfig:
    """`dictionary`: keys of past batches, one ring for each side and branch."""

    size: int = setting(4096, low=0, help="keys in each; 0 switches them off")
    momentum: float = setting(0.995, low=0, high=1, help="of the key tower")
    ramp: bool = setting(False, help="start with a small momentum: (1 + n) / (10 + n) after n steps, at most momentum")


@dataclass(frozen=True)
class ConceptConfig(ConceptRecipe):
    """`concept`: the graph, the query and the weight of the concept branch."""

    weight: float = setting(1.0, low=0, help="of its contrastive loss")
    graph: str | None = setting(None, help="folder that `lavis-itm concepts build` wrote; made when not given")
    word_dim: int = setting(300, low=1, help="size of learned concept vectors")
    hidden: int | None = setting(None, low=1, help="width inside the graph convolution; half of the joint space")
    query: str = setting("dot", choices=QUERIES)
    sharpness: float = setting(10.0, above=0, help="of the query's softmax")
    detach_query: bool = setting(False, help="keep the branch's losses away from the encoders")
    lr_scale: float = setting(1.0, low=0, help="learning-rate factor of the branch")


@dataclass(frozen=True)
class LabelConfig:
    """`labels`: pseudo cluster labels that the concept branch predicts."""

    weight: float = setting(0.2, low=0, help="of the prediction loss")
    warmup_epochs: float = setting(1.0, low=0, help="epochs over which the weight rises from 0")
    prototypes: int = setting(256, low=2)
    momentum: float = setting(0.99, low=0, high=1, help="of the prototypes")
    iterations: int = setting(3, low=1, help="of Sinkhorn")
    temperature: float = setting(0.05, above=0, help="of Sinkhorn")
    prediction_temperature: float = setting(0.1, above=0)
    targets: str = setting("soft", choices=("soft", "hard"))
    pairing: str = setting("self", choices=("self", "swap", "mean"), help="whose label is predicted")
    extra_rows: int = setting(0, low=0, help="newest keys of each side that also take part in the assignment")


@dataclass(frozen=True)
class CoderConfig(MethodConfig):
    """The `model` section of `itm_coder`; `concept` and `labels` are a section, true or false."""

    dcl: DclConfig = field(default_factory=DclConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    concept: bool | ConceptConfig = True
    labels: bool | LabelConfig = True
    fusion_weight: float | None = setting(None, low=0, high=1, help="of the instance branch; chosen on val by default")
    scored: str = setting("online", choices=SCORED, help="which tower is evaluated; best: chosen on val")

    @property
    def concept_settings(self) -> ConceptConfig | None:
        """The concept branch's settings, None when it is switched off."""
        if isinstance(self.concept, bool):
            return ConceptConfig() if self.concept else None
        return self.concept

    @property
    def label_settings(self) -> LabelConfig | None:
        """The pseudo labels' settings; None when they, or the branch that predicts them, are switched off."""
        if self.concept_settings is None or self.labels is False:
            return None
        return LabelConfig() if isinstance(self.labels, bool) else self.labels

    @property
    def temperature(self) -> float:
        """Of the contrastive losses: their own, else the base loss's, else 0.05."""
        base = self.base_loss
        return self.dcl.temperature or (base.temperature if base is not None else None) or 0.05

    @property
    def needs_keys(self) -> bool:
        """Whether anything asks for the key tower."""
        dcl = self.dcl
        return bool(self.dictionary.size or dcl.keys == "momentum" or dcl.intra_weight or self.scored != "online")
