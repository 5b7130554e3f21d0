"""Generated pictures with captions, and how relevant each caption is to each picture; nothing to download."""

from lavis_itm_plugins.data.scenes.claims import Claims, Mention
from lavis_itm_plugins.data.scenes.grading import relevance, relevance_matrix
from lavis_itm_plugins.data.scenes.store import SceneConfig, SceneSplit, build_scenes, default_cache_root, load_scenes
from lavis_itm_plugins.data.scenes.world import Scene, Thing

__all__ = [
    "Claims",
    "Mention",
    "Scene",
    "SceneConfig",
    "SceneSplit",
    "Thing",
    "build_scenes",
    "default_cache_root",
    "load_scenes",
    "relevance",
    "relevance_matrix",
]
