"""Evaluate pretrained backbones: probes on frozen layers, fine-tuning, and comparisons of runs.

Every protocol is a function and a command. The public names are imported on first use.
"""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names
from transfer.protocols import PROTOCOLS

if TYPE_CHECKING:
    from crosschannel.runs.result import Result as Result
    from crosschannel.runs.result import load_result as load_result
    from transfer.comparison import compare as compare
    from transfer.predict import load_predictor as load_predictor
    from transfer.protocols.classify.config import ClassifyConfig as ClassifyConfig
    from transfer.protocols.classify.protocol import classify as classify
    from transfer.protocols.dense.config import DenseConfig as DenseConfig
    from transfer.protocols.dense.protocol import dense as dense
    from transfer.protocols.detect.config import DetectConfig as DetectConfig
    from transfer.protocols.detect.protocol import detect as detect
    from transfer.protocols.few_shot.config import FewShotConfig as FewShotConfig
    from transfer.protocols.few_shot.protocol import few_shot as few_shot
    from transfer.protocols.knn.config import KNNConfig as KNNConfig
    from transfer.protocols.knn.protocol import knn as knn
    from transfer.protocols.linear_probe.config import LinearProbeConfig as LinearProbeConfig
    from transfer.protocols.linear_probe.protocol import linear_probe as linear_probe
    from transfer.protocols.segment.config import SegmentConfig as SegmentConfig
    from transfer.protocols.segment.protocol import segment as segment
    from transfer.protocols.svm.config import SVMConfig as SVMConfig
    from transfer.protocols.svm.protocol import svm as svm

_MODULES = {
    "crosschannel.runs.result": "Result load_result",
    "transfer.comparison": "compare",
    "transfer.predict": "load_predictor",
}
for _entry in PROTOCOLS.values():
    _MODULES |= [path.split(":") for path in (_entry.import_path, _entry.config)]
__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
