"""What users of nnU-Net type by habit, and what to write here: option -> words of a message."""

from __future__ import annotations

_PLAN_DECIDES = "the plan decides: autoseg_plan TASK --set"
_DEVICE = {"-device": "write --device NAME"}

PLAN = _DEVICE | {
    "-d": "the task comes first, without an option: autoseg_plan TASK",
    "-c": "write --config NAME",
    "-pl": "write --planner default, resenc_m, resenc_l or resenc_xl",
    "-np": "write --processes N",
    "-npfp": "write --processes N",
    "-gpu_memory_target": "write --memory GB",
    "-overwrite_target_spacing": "write --set target_spacing_mm=[X,Y,Z], in the order x, y, z",
    "-overwrite_plans_name": "write --name NAME",
    "--verify_dataset_integrity": "leave it out; every plan begins with it",
    "--clean": "leave it out; what no longer fits is made anew",
    "--no_pp": "leave it out; autoseg_train preprocesses what is missing",
    "--no_pbar": "leave it out; there are bars on a terminal only",
    "-fpe": "leave it out; there is one way to measure the data",
    "-preprocessor_name": "leave it out; the steps are plan values: --set preprocessing=[...]",
    "-plans_name": "write --name NAME",
    "--verbose": "leave it out; --explain tells why each value was chosen",
}

TRAIN = _DEVICE | {
    "-d": "the task comes first, without an option: autoseg_train TASK fold 0",
    "-f": "write autoseg_train TASK fold 0",
    "-c": "write --plan NAME of a plan made by autoseg_plan TASK --config CONFIG",
    "-tr": f"{_PLAN_DECIDES} training.epochs=250, or another value",
    "-p": "write --plan NAME",
    "--c": "write --resume",
    "-pretrained_weights": "write --pretrained MODEL",
    "-num_gpus": "write torchrun --nproc-per-node=N -m autoseg.cli.train TASK fold 0",
    "--npz": "leave it out; nothing needs the probabilities",
    "--val": "write --resume, which does what is missing of a trained fold",
    "--val_best": "leave it out; the final weights are used, an average over the last steps",
    "--disable_checkpointing": "leave it out; the latest state is kept to resume from",
}

PREDICT = _DEVICE | {
    "-d": "write -t TASK, if several are trained",
    "-c": "write -p NAME of the plan, if several are trained",
    "-tr": "leave it out; -p NAME of the plan decides",
    "-chk": "leave it out; a fold has one file of weights, final.safetensors",
    "-step_size": f"{_PLAN_DECIDES} inference.overlap=[X,Y,Z], in voxels",
    "--disable_tta": "leave it out; nothing is mirrored without --tta",
    "--save_probabilities": "write --save-probabilities",
    "--continue_prediction": "leave it out; what is there is kept without --overwrite",
    "--c": "leave it out; what is there is kept without --overwrite",
    "-npp": "leave it out; one case is read while another is segmented",
    "-nps": "leave it out; one case is written while another is segmented",
    "-prev_stage_predictions": "leave it out; the first stage is run, too",
    "-num_parts": "start one command several times; such runs share the output folder",
    "-part_id": "start one command several times; such runs share the output folder",
    "--not_on_device": "leave it out; no volume of all classes is ever held",
    "--disable_progress_bar": "leave it out; there are bars on a terminal only",
    "--verbose": "leave it out",
}

EVALUATE = {
    "-d": "the task comes first, without an option: autoseg_evaluate TASK",
    "-ref": "write -g TRUTH",
    "-pred": "write -p PREDICTED",
    "-djfile": "leave it out; the labels are found, or chosen with --map",
    "-pfile": "leave it out; the labels are found, or chosen with --map",
    "-np": "write --processes N",
    "--chill": "leave it out; a missing prediction is told and counted as missing",
    "-l": "leave it out; --map P:T chooses labels",
}

PACK = {
    "-d": "the task comes first, without an option: autoseg_pack TASK",
    "-c": "write -p NAME of the plan, if several are trained",
    "-tr": "leave it out; -p NAME of the plan decides",
    "-chk": "leave it out; a fold has one file of weights, final.safetensors",
    "--not_strict": "leave it out; the folds that are trained are packed, or those of -f",
    "--exp_cv_preds": "leave it out; scores are packed, segmentations are not",
}
