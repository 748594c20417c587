import json

import pytest

from deepseek.errors import ConfigError
from deepseek.planner import Cluster, find_gpu
from deepseek.planner.constants import CALIBRATION
from deepseek.planner.measured_links import apply_measurement
from deepseek.planner.network import make_ring

CLUSTER = Cluster(find_gpu("h100"), 16)


def write(folder, num_hosts, *rates):
    rows = [{"collective": "all_reduce", "bus_gbs": rate} for rate in rates]
    path = folder / "measured.json"
    path.write_text(json.dumps({"num_hosts": num_hosts, "rows": rows}))
    return path


def test_a_ring_reaches_what_was_measured_between_nodes(tmp_path):
    cluster = apply_measurement(CLUSTER, write(tmp_path, 2, 10.0, 48.5))
    assert make_ring(cluster, 16, 1, CALIBRATION).bytes_per_s == pytest.approx(48.5e9)
    assert cluster.gpu == CLUSTER.gpu


def test_a_ring_reaches_what_was_measured_within_a_node(tmp_path):
    cluster = apply_measurement(CLUSTER, write(tmp_path, 1, 200.0))
    assert make_ring(cluster, 8, 1, CALIBRATION).bytes_per_s == pytest.approx(200e9)
    assert cluster.node_bandwidth == CLUSTER.node_bandwidth


def test_what_processors_measured_is_refused(tmp_path):
    path = write(tmp_path, 1, 3.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "CPU"}))
    with pytest.raises(ConfigError, match=r"measured\.json: device=CPU"):
        apply_measurement(CLUSTER, path)


@pytest.mark.parametrize("text", ["", "{}", '{"rows": []}', '{"rows": [{"collective": "x"}]}'])
def test_a_file_without_a_measurement_is_refused(tmp_path, text):
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--bandwidth"):
        apply_measurement(CLUSTER, path)
