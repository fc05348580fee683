"""The weights that mini runs start from: vit-mini's encoder, trained on the mini set, windows only.

    make mini-weights    10 minutes on one core; then all studies at mini scale start from them

In the paper an encoder is pre-trained once, on images no larger than the windows that it has in
detection (224 px, 14 x 14 tokens): it knows all that is near and nothing of what is far, and the
ways to propagate are learned in fine-tuning, by all rows from the same weights. So here: windows
never exchange information in this run, and its encoder is what every row starts from. No study of
its own: `make studies` does not list it.
"""

from experiments.studies import Study, Variant

study = Study(
    name="windows-mini",
    question="Weights that runs at mini scale start from: trained with windows only",
    words={
        "model.backbone.propagation": "none",
        "train.init_weights": "none",
        "train.max_iter": 2000,
        # Heads of their time: the mini scale's are lighter now, for speed.
        "model.proposal_generator.head.conv_dims": [-1],
        "model.roi_heads.mask_head.conv_dims": [64, 64],
        "model.roi_heads.mask_pooler.sampling_ratio": 2,
    },
    variants=(Variant("windows"),),
    sizes={"mini": "vit-mini"},
    seeds={"mini": 1},
)
