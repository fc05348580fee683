"""What a run is beside model, data, optimizer and schedule."""

train = dict(
    max_iter=184375,  # 100 epochs of 118,000 images (detectron2's count) in batches of 64
    seed=0,
    amp=True,  # bfloat16 autocast where the device computes in it, else full precision
    clip_grad_norm=None,
    init_weights="none",  # of the encoder: a word of docs/weights.md, a path, or "none": random
    threads=0,  # CPU threads of one run; 0: all
    checkpoint_period=5000,  # iterations
    log_period=20,  # iterations
)
