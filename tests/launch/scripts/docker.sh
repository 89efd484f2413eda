{
  "image": "nvcr.io/nvidia/nemo:25.07",
  "command": "bash -c \"torchrun --rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id NUMBER --nnodes 1 --nproc-per-node 8 --node-rank 0 --tee 3 -m nemo_run.core.runners.fdl_runner -n sft /nemo_run/configs/sft_fn_or_script 2>&1 | tee -a /nemo_run/log_sft-NUMBER-sft.out; export EXIT_CODE=${PIPESTATUS[0]}; printf '{\\\"id\\\": \\\"sft-NAME\\\", \\\"exit_code\\\": \\\"%s\\\"}\\n' \"$EXIT_CODE\" > /nemo_run/status_sft-NUMBER-sft.out; exit $EXIT_CODE;\"",
  "detach": true,
  "remove": true,
  "name": "sft-NUMBER-sft",
  "hostname": "sft-NUMBER-sft",
  "network": "host",
  "working_dir": "/nemo_run/code",
  "labels": {
    "nemo-run/experiment-id": "sft_NUMBER",
    "nemo-run/name": "sft-NUMBER-sft",
    "nemo-run/id": "sft-NAME"
  },
  "environment": {
    "NEMO_VLM_CODE": "COMMIT",
    "NCCL_DEBUG": "WARN",
    "HF_TOKEN_PATH": "/data/.huggingface_token",
    "LOGLEVEL": "INFO"
  },
  "runtime": null,
  "volumes": [
    "/data:/data"
  ],
  "shm_size": "64g",
  "ulimits": [
    {
      "Name": "memlock",
      "Soft": -1,
      "Hard": -1
    },
    {
      "Name": "stack",
      "Soft": 67108864,
      "Hard": 67108864
    }
  ],
  "ipc_mode": null,
  "healthcheck": {},
  "privileged": false,
  "device_requests": [
    {
      "Driver": "",
      "Count": 8,
      "DeviceIDs": [],
      "Capabilities": [
        [
          "compute",
          "utility"
        ]
      ],
      "Options": {}
    }
  ]
}
