# Put into each job's script by launch/job_script.py, after the lines that set run_folder, retries,
# site_exclude, disk_wait_seconds and doctor. NeMo-Run's template then calls srun for the ranks,
# which is this function: it starts the job once more when there is more to do, and leaves out nodes
# that have failed.

attempts=$run_folder/log/attempts.jsonl
printed=$run_folder/log/srun_messages.txt
asked_to_stop=

note() {  # one line of JSON; arguments: "key":value ...
    mkdir -p "$run_folder/log"
    local IFS=,
    # A line that a full disk has cut off stays by itself.
    [ -z "$(tail -c 1 "$attempts" 2>/dev/null)" ] || echo >>"$attempts"
    echo "{\"time\":$(date +%s),\"job\":\"$SLURM_JOB_ID\",\"restart\":${SLURM_RESTART_COUNT:-0},$*}" \
        >>"$attempts"
}

whole_checkpoints() {  # their folders
    local folder
    for folder in "$run_folder"/checkpoints/*/; do
        folder=${folder%/}
        [ -e "$folder/weights/metadata.json" ] && [ ! -e "$folder-unfinished" ] && echo "$folder"
    done
}

cut_off_checkpoints() {  # their folders
    local mark
    for mark in "$run_folder"/checkpoints/*-unfinished; do
        [ -d "${mark%-unfinished}" ] && echo "${mark%-unfinished}"
    done
}

checkpoints() {  # a number that changes with the set of whole checkpoints
    whole_checkpoints | cksum | cut -d ' ' -f 1
}

start_of_attempt() {  # the line of the last one that began
    grep '"nodes"' "$attempts" | tail -n 1
}

progress() {  # whether there is a checkpoint that was not there when the attempt began
    start_of_attempt | grep -q "\"checkpoints\":$(checkpoints)\b" && echo false || echo true
}

# The newest checkpoint and a tenth of it must fit; those that were cut off will be removed.
lacks_space() {  # says how much there is
    local newest size free cut_off
    newest=$(whole_checkpoints | while read -r folder; do
        [ -L "$folder" ] || echo "$folder"
    done | xargs -r -d '\n' ls -td | head -n 1)
    [ -n "$newest" ] || return 1
    size=$(du -sk "$newest" | cut -f 1)
    free=$(df -Pk "$run_folder" | awk 'NR == 2 {print $4}')
    cut_off=$(cut_off_checkpoints | xargs -r -d '\n' du -ck | awk 'END {print $1 + 0}')
    [ $((free + cut_off)) -lt $((size * 11 / 10)) ] || return 1
    echo "error: $((free / 1024)) MiB are free in $run_folder, a checkpoint has $((size / 1024)) MiB."
}

as_json_list() {  # of words
    [ $# = 0 ] && echo '[]' && return
    printf '["%s"' "$1" && shift && printf ',"%s"' "$@" | sed 's/,""$//' && echo ']'
}

lost_nodes() {  # of those given: srun has said so, or they are down
    local IFS=,
    [ -f "$printed" ] && sed -nE 's/^srun: error: Node failure on (.*)/\1/p' "$printed" |
        xargs -r scontrol show hostnames
    sinfo --noheader --Node --nodes="$*" --format='%N %t' |
        awk '$2 ~ /^(down|drain|drng|fail|failg|unk|no_resp|inval)|[*]$/ {print $1}' | sort -u
}

# A task killed by something else than this script: the first line that says so, as the others
# are killed because of it.
nodes_of_killed_tasks() {
    sed -nE 's/^srun: error: ([^:]+): tasks? [^:]*: (Killed|Aborted|Bus error|Segmentation fault).*/\1/p' \
        "$printed" | head -n 1 | xargs -r scontrol show hostnames |
        awk -v all="$SLURM_JOB_NUM_NODES" '
            { nodes[NR] = $0 }
            END { if (NR < all || all == 1) for (i = 1; i <= NR; i++) print nodes[i] }'
}

# Ranks that hang keep the others waiting in a collective operation. Suspect are those that did not
# even end with their stacks, else those whose stacks do not wait for others.
nodes_of_hanging_ranks() {  # argument: the ranks' log
    [ -f "$1" ] || return
    # Not every version of Slurm sets SLURM_NTASKS here.
    local per_node=${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))}
    awk -v ranks="$((per_node * SLURM_JOB_NUM_NODES))" '
        match($0, /^ *[0-9]+: /) { rank = $1 + 0; text = substr($0, RLENGTH + 1) }
        text ~ /^Timeout \(.*\)!$/ { hangs[rank] = 1; any = 1 }
        hangs[rank] && text ~ /distributed_c10d.py/ { waits[rank] = 1; some_wait = 1 }
        END {
            if (!any) exit
            for (rank = 0; rank < ranks; rank++) if (!hangs[rank]) { print rank; silent = 1 }
            if (silent || !some_wait) exit
            for (rank = 0; rank < ranks; rank++) if (!waits[rank]) print rank
        }' "$1" | while read -r rank; do
        scontrol show hostnames "$SLURM_JOB_NODELIST" |
            sed -n "$((rank / per_node + 1))p"
    done | sort -u
}

# The newest bad nodes first, as long as enough others are left for this job.
nodes_to_exclude() {
    local usable node
    usable=" $(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format='%N %t' |
        awk '$2 !~ /^(down|drain|drng|fail|failg|unk|no_resp|inval)|[*]$/ {print $1}' | sort -u |
        tr '\n' ' ') "
    for node in $(scontrol show hostnames "$site_exclude"); do
        usable=${usable/ $node / }
    done
    for node in $(tac "$attempts" | sed -nE 's/.*"bad_nodes":\[([^]]*)\].*/\1/p' | tr ',"' '  '); do
        [[ $(wc -w <<<"${usable/ $node / }") -ge $SLURM_JOB_NUM_NODES ]] || break
        usable=${usable/ $node / }
        echo "$node"
    done | awk '!seen[$0]++'
}

attempts_without_progress() {  # the newest ones in a row
    grep "\"job\":\"$SLURM_JOB_ID\"" "$attempts" | tac |
        awk '/"reason":"the disk is full"/ {next}
            /"progress":true/ {exit} /"progress":false/ {count++} END {print count + 0}'
}

previous_attempt_ended_without_a_word() {
    [ -f "$attempts" ] && tail -n 1 "$attempts" | grep -q "\"job\":\"$SLURM_JOB_ID\".*\"nodes\""
}

start_once_more() {  # argument: seconds to wait before
    local nodes
    # Only a running job: a cancelled one stays cancelled.
    [[ $(scontrol --oneliner show job "$SLURM_JOB_ID") == *\ JobState=RUNNING\ * ]] || return
    trap '' TERM USR1  # Slurm ends this script
    mapfile -t nodes < <(nodes_to_exclude)
    echo "starting once more; excluded nodes: ${nodes[*]:-none}"
    scontrol requeue "$SLURM_JOB_ID"
    if [ ${#nodes[@]} -gt 0 ]; then
        # Refused while the job runs; before it starts again there are some seconds.
        nodes=$(IFS=,; echo "${nodes[*]}${site_exclude:+,$site_exclude}")
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$nodes"
    fi
    [ -z "$1" ] || scontrol update JobId="$SLURM_JOB_ID" StartTime="now+$1"
}

wait_for_space() {
    echo "the disk is full: this job looks again in $disk_wait_seconds s, and gives back its nodes."
    start_once_more "$disk_wait_seconds"
}

end_attempt() {  # arguments: exit status, the ranks' log
    local reason="status $1" progress bad=()
    progress=$(progress)
    mapfile -t bad < <(nodes_of_hanging_ranks "$2")
    if [ "$1" = 0 ]; then
        reason=finished
    elif [ -n "$asked_to_stop" ]; then
        reason="time limit" bad=()
    elif grep -q 'exit code 75$' "$printed"; then
        reason="asked to stop" bad=()
    elif grep -q 'exit code 76$' "$printed"; then
        reason="a bad step, gone back" bad=()
    elif grep -qE '^ *[0-9]+: Timeout \(.*\)!$' "$2"; then
        reason=hang
    elif grep -qE 'No space left on device|Disk quota exceeded' "$2" || lacks_space >/dev/null; then
        reason="the disk is full" bad=()
    else
        mapfile -t bad < <(nodes_of_killed_tasks)
        [ ${#bad[@]} = 0 ] || reason="a rank was killed"
    fi
    note "\"end\":$1" "\"reason\":\"$reason\"" "\"progress\":$progress" \
        "\"bad_nodes\":$(as_json_list "${bad[@]}")"
    echo "attempt ended with status $1: $reason; new checkpoint: $progress; bad nodes: ${bad[*]:-none}"
    [ "$1" = 0 ] && return
    if [ "$reason" = "the disk is full" ]; then
        wait_for_space
        return
    fi
    go_on_unless_given_up
}

go_on_unless_given_up() {
    local failures
    failures=$(attempts_without_progress)
    if [ "$failures" -gt "$retries" ]; then
        echo "error: $failures attempts in a row without a new checkpoint; allowed are $retries more" \
            "than the first."
        return
    fi
    start_once_more
}

# Slurm starts a job anew by itself when a node is lost, and this script dies with the node or soon
# after. A lost node that has come back is not used, where there are others.
end_of_silent_attempt() {
    local nodes bad node reason="taken away"
    mapfile -t nodes < <(start_of_attempt | sed -nE 's/.*"nodes":\[([^]]*)\].*/\1/p' | tr -d '"' | tr ',' '\n')
    mapfile -t bad < <(lost_nodes "${nodes[@]}" | sort -u)
    [ ${#bad[@]} = 0 ] || reason="a node was lost"
    note '"end":null' "\"reason\":\"$reason\"" "\"progress\":$(progress)" \
        "\"bad_nodes\":$(as_json_list "${bad[@]}")"
    for node in $(nodes_to_exclude); do
        if scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qx "$node"; then
            start_once_more
            exit 1
        fi
    done
}

run_ranks() {  # arguments of srun
    local ranks
    : >"$printed"
    command srun "$@" 2> >(tee "$printed" >&2) &
    ranks=$!
    while kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; done  # a signal ends a wait early
    wait "$ranks"
}

see_the_doctor() {  # arguments of srun; as these ranks, but another program
    local arguments=()
    while [ $# -gt 0 ] && [ "$1" != python ]; do
        arguments+=("$1")
        [ "$1" = --output ] && shift && arguments+=("$run_folder/log/doctor_%j.txt")
        shift
    done
    rm -f "$run_folder/log/doctor_$SLURM_JOB_ID.txt"
    run_ranks "${arguments[@]}" python -m launch doctor "${doctor[@]}"
}

# Status 3 is a node that is not fit; where all are not, it is not the nodes.
end_attempt_at_the_doctor() {
    local bad=() reason="the doctor found a fault"
    sleep 1  # for the last lines
    mapfile -t bad < <(sed -nE 's/^srun: error: ([^:]+): tasks? [^:]*: Exited with exit code 3$/\1/p' \
        "$printed" | xargs -r -n 1 scontrol show hostnames | sort -u)
    [ ${#bad[@]} -lt "$SLURM_JOB_NUM_NODES" ] || [ "$SLURM_JOB_NUM_NODES" = 1 ] || bad=()
    cat "$run_folder/log/doctor_$SLURM_JOB_ID.txt"
    note '"end":1' "\"reason\":\"$reason\"" '"progress":false' \
        "\"bad_nodes\":$(as_json_list "${bad[@]}")"
    echo "$reason; bad nodes: ${bad[*]:-none}"
    go_on_unless_given_up
}

output_of() {  # arguments of srun
    while [ $# -gt 0 ] && [ "$1" != --output ]; do shift; done
    echo "${2/\%j/$SLURM_JOB_ID}"
}

srun() {
    local log status nodes
    log=$(output_of "$@")
    if previous_attempt_ended_without_a_word; then
        end_of_silent_attempt
    fi
    if lacks_space; then
        wait_for_space
        exit 1
    fi
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    note "\"nodes\":$(as_json_list "${nodes[@]}")" "\"checkpoints\":$(checkpoints)"
    trap 'asked_to_stop=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
    if [ ${#doctor[@]} -gt 0 ] && ! see_the_doctor "$@"; then
        end_attempt_at_the_doctor
        return 1
    fi
    run_ranks "$@"
    status=$?
    sleep 1  # for the last lines
    end_attempt "$status" "$log"
    return "$status"
}
