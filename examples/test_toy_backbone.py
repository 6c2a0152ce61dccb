from ndem_ocp.testing import BackboneContract

MODEL = {
    "name": "hydra",
    "otf_graph": True,
    "pass_through_head_outputs": True,  # one head gives energy and forces
    "backbone": {"model": "toy_backbone.ToyBackbone", "hidden_channels": 16, "cutoff": 4.0},
    "heads": {
        "energy_and_forces": {
            "module": "ndem_energy_gradient_head",
            "energy": {"module": "toy_energy_head"},
        }
    },
}


class TestToyBackbone(BackboneContract):
    model, forces = MODEL, "gradient"
