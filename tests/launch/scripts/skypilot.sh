envs:
  HF_TOKEN_PATH: /data/.huggingface_token
  LOGLEVEL: INFO
  NCCL_DEBUG: WARN
  NEMO_VLM_CODE: COMMIT
file_mounts:
  /data:
    mode: MOUNT
    persistent: true
    source: s3://my-bucket
  /nemo_run: HOME/.nemo_run/experiments/sft/sft_NUMBER/sft
name: sft
num_nodes: 12
resources:
  _requires_fuse: true
  accelerators:
    H100: 8
  image_id:
    us-east-1: docker:nvcr.io/nvidia/nemo:25.07
  infra: aws/us-east-1
  network_tier: best
run: |2

  conda deactivate

  num_nodes=`echo "$SKYPILOT_NODE_IPS" | wc -l`
  echo "num_nodes=$num_nodes"

  head_node_ip=`echo "$SKYPILOT_NODE_IPS" | head -n1`
  echo "head_node_ip=$head_node_ip"

  cd /nemo_run/code

  torchrun --rdzv-backend c10d --rdzv-endpoint $head_node_ip:29500 --rdzv-id NUMBER --nnodes 12 --nproc-per-node 8 --node-rank $SKYPILOT_NODE_RANK --tee 3 -m nemo_run.core.runners.fdl_runner -n sft /nemo_run/configs/sft_fn_or_script
setup: ''
volumes: {}
