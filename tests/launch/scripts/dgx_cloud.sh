{
  "project": "vision",
  "image": "nvcr.io/nvidia/nemo:25.07",
  "nodes": 12,
  "gpus_per_node": 8,
  "claims": [
    {
      "name": "vision-storage",
      "path": "/workspace"
    }
  ],
  "environmentVariables": [
    {
      "name": "NEMO_VLM_CODE",
      "value": "COMMIT"
    },
    {
      "name": "NCCL_DEBUG",
      "value": "WARN"
    },
    {
      "name": "HF_TOKEN_PATH",
      "value": "/workspace/.huggingface_token"
    }
  ]
}
#!/bin/bash

set -evx  # Print commands, but DO NOT exit immediately on error (we handle that below)
export PYTHONUNBUFFERED=1
export TORCHX_MAX_RETRIES=0
export LOGLEVEL=INFO
export GROUP_RANK=$(echo $HOSTNAME | grep -oE '[0-9]+$')

echo "Starting training command..."
set +e # Turn off auto-exit so we can capture the code

torchrun --nnodes 12 --nproc-per-node 8 -m nemo_run.core.runners.fdl_runner -n sft /nemo_run/configs/sft_fn_or_script

exitcode=$?
set -e

echo "Main command exited with code $exitcode"

exit $exitcode
