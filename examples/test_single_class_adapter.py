from ndem_ocp.testing import BackboneContract

MODEL = {
    "name": "hydra",
    "otf_graph": True,
    "backbone": {
        "model": "single_class_adapter.SingleClassBackbone",
        "channels": 16,
        "cutoff": 4.0,
    },
    "heads": {
        "energy": {"module": "ndem_output_head", "output_name": "energy"},
        "forces": {"module": "ndem_output_head", "output_name": "forces"},
    },
}


class TestSingleClassAdapter(BackboneContract):
    model, forces = MODEL, "direct"
