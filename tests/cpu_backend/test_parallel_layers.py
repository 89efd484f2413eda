"""TP=2 and TP=2 with sequence parallelism give the results and gradients of one process."""


def test_layers_and_loss_on_two_processes(run_two_processes):
    run_two_processes("parallel_layers.py")
