"""What `--help` says, one page a command."""

from __future__ import annotations

ABOUT = {
    "fit": "Train: pre-training and fine-tuning, also going on with a run that was stopped.",
    "validate": "Measure a trained model on the validation data.",
    "test": "Measure a trained model on the test data.",
    "predict": "Write labels and probabilities, transcripts, or features of a trained model to a file.",
}
EXAMPLES = {
    "fit": (
        "python cli.py fit --config configs/pretrain/image_base.yaml --data.root /data/imagenet",
        "python cli.py fit --config runs/image_base/config.yaml --ckpt_path runs/image_base/checkpoints/last.ckpt",
    ),
    "validate": (
        "python cli.py validate --ckpt_path runs/imagenet_base/checkpoints/last.ckpt",
        "python cli.py validate --ckpt_path last.ckpt --data.root /data/other --data.batch_size 64",
    ),
    "test": (
        "python cli.py test --ckpt_path runs/imagenet_base/checkpoints/last.ckpt",
        "python cli.py test --ckpt_path last.ckpt --data.root /data/other",
    ),
    "predict": (
        "python cli.py predict --ckpt_path last.ckpt --data.root /data/pictures",
        "python cli.py predict --ckpt_path last.ckpt --data.root /data/recordings --predictions.output said.jsonl",
    ),
}
OPTIONS = {
    "fit": """\
  --config FILE                   settings; several files add up, the later one wins. Before all other options
  --model.KEY, --data.KEY VALUE   change one setting, as in --model.optimization.lr 1e-3
  --trainer.default_root_dir DIR  folder of the run, by default runs/<name of the first config>
  --trainer.max_epochs N          or --trainer.max_steps N; --trainer.devices, --trainer.precision, ... as in Lightning
  --trainer.callbacks+ CLASS      add a callback; those of this project stay
  --model_checkpoint.KEY VALUE    which checkpoints are kept; runs/<name>/checkpoints/last.ckpt always is
  --config configs/logging/wandb.yaml   add a logger (or tensorboard.yaml); metrics go to a CSV file in any case
  --ckpt_path FILE                go on with a run; "last" goes on where the folder has a checkpoint, else starts
  --seed_everything N             default 0""",
    "validate": """\
  --ckpt_path FILE                the trained model; its class, arguments and data come from the file
  --data.KEY VALUE                change a data setting, as in --data.root DIR
  --config FILE                   take model and data from a file instead
  --trainer.KEY VALUE             devices, precision, limit_val_batches, ... as in Lightning""",
    "predict": """\
  --ckpt_path FILE                the trained model; its class, arguments and data come from the file
  --data.KEY VALUE                change a data setting, as in --data.root DIR
  --predictions.output FILE       by default predictions.csv, predictions.jsonl or features.npy in the run's folder
  --predictions.overwrite true    replace the file
  --predictions.top N             labels for each sample, default 5
  --trainer.KEY VALUE             devices, precision, limit_predict_batches, ... as in Lightning""",
}
OPTIONS["test"] = OPTIONS["validate"].replace("limit_val", "limit_test")
MORE = """\
  --print_config                  print the whole configuration and stop
  --model.help CLASS              arguments of a class (Data2Vec, ImageClassifier); --data.help ImageDataModule
  --help_all                      every option"""
