"""The environment variables of torch's process groups, of Gloo, UCX, libfabric and CUDA."""

from deepseek.doctor.variables import Variable, removed, renamed, slow, wrong

SERIAL = "every kernel is waited for: training is several times slower"
VARIABLES = (
    # torch's NCCL process group
    Variable(
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "what a failed or late collective does: 0 nothing, 1 abort, 2 clean up, 3 end the process",
        "3",
        wrong("a lost rank is not noticed: the others hang for ever", "0"),
    ),
    Variable(
        "TORCH_NCCL_BLOCKING_WAIT",
        "1: wait() blocks the process and raises at the time-out",
        "0",
        slow("no overlap of communication and computation; for debugging only", "1"),
    ),
    Variable(
        "TORCH_NCCL_ENABLE_MONITORING",
        "a watchdog ends a process whose NCCL thread hangs",
        "1",
        slow("a hung process is not ended", "0"),
    ),
    Variable(
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
        "how long the NCCL thread may be silent, s",
        "480",
        slow("ends runs whose first step compiles or loads for long", *map(str, range(1, 60))),
    ),
    Variable(
        "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "time to write the flight recorder, ms", "60000"
    ),
    Variable("TORCH_NCCL_COORD_CHECK_MILSEC", "how often ranks look for a dump signal, ms", "1000"),
    Variable(
        "TORCH_NCCL_DUMP_ON_TIMEOUT",
        "the flight recorder is written at a time-out",
        "1",
        slow("a hang leaves no record of which rank was late", "0"),
    ),
    Variable("TORCH_NCCL_EXTRA_DUMP_ON_EXEC", "1: a dump at an exception too", "0"),
    Variable("TORCH_NCCL_DESYNC_DEBUG", "1 reports ranks that are out of step", "0"),
    Variable(
        "TORCH_NCCL_ENABLE_TIMING", "1 times each collective", "0", slow("costs some speed", "1")
    ),
    Variable(
        "TORCH_NCCL_NAN_CHECK", "1 looks for NaN in each buffer", "0", slow("costs speed", "1")
    ),
    Variable("TORCH_NCCL_HIGH_PRIORITY", "1: streams of high priority", "0"),
    Variable("TORCH_NCCL_CUDA_EVENT_CACHE", "events are used again", "1"),
    Variable("TORCH_NCCL_USE_COMM_NONBLOCKING", "1: communicators start in the background", "0"),
    Variable("TORCH_NCCL_NONBLOCKING_TIMEOUT", "how long such a start may take, s", "the group's"),
    Variable("TORCH_NCCL_PROPAGATE_ERROR", "1 tells the other ranks of an error", "0"),
    Variable("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0 hides errors of CUDA in the watchdog", "1"),
    Variable("TORCH_NCCL_RANKS_PER_ROOT", "ranks per root of the start, for thousands", "128"),
    Variable("TORCH_NCCL_LOG_CPP_STACK_ON_UNCLEAN_SHUTDOWN", "C++ stacks at a bad end", "1"),
    Variable("TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK", "1 registers torch's memory", "0"),
    Variable("TORCH_NCCL_BCAST_UNIQUEID", "the start is told by broadcast", "1"),
    removed("TORCH_NCCL_AVOID_RECORD_STREAMS", "memory is kept by references; now always"),
    renamed("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"),
    renamed("TORCH_NCCL_TRACE_CPP_STACK", "TORCH_FR_CPP_STACK"),
    renamed("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"),
    Variable("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "a pipe that asks for a dump", "none"),
    Variable("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "1 shows that warning", "0"),
    Variable(
        "TORCH_FR_BUFFER_SIZE",
        "collectives that the flight recorder keeps",
        "2000",
        slow("the flight recorder is off: a hang leaves no trace", "0"),
    ),
    Variable("TORCH_FR_CPP_STACK", "1 records C++ stacks", "0", slow("costs speed", "1")),
    Variable("TORCH_FR_DUMP_TEMP_FILE", "where the flight recorder is written", "/tmp"),
    Variable("TORCH_FR_DUMP_DYNAMIC_FILE_NAME", "1: the name is read anew at each dump", "0"),
    Variable(
        "TORCH_DISTRIBUTED_DEBUG",
        "OFF, INFO or DETAIL: checks that the ranks agree",
        "OFF",
        slow("DETAIL compares each collective over Gloo: much slower", "detail"),
    ),
    Variable("TORCH_CPP_LOG_LEVEL", "INFO, WARNING or ERROR of torch's C++ part", "WARNING"),
    # Gloo
    Variable("GLOO_SOCKET_IFNAME", "interfaces that Gloo uses", "that of the host name"),
    Variable("GLOO_DEVICE_TRANSPORT", "TCP, TCP_TLS or UV", "TCP"),
    Variable("GLOO_LOG_LEVEL", "how much Gloo tells: INFO, WARN, ERROR, DEBUG", "WARN"),
    Variable("GLOO_DISABLE_CONNECTION_RETRIES", "1: one attempt to connect", "0"),
    Variable("GLOO_ENABLE_STORE_V2_API", "faster start over the store", "by version"),
    Variable("TORCH_GLOO_LAZY_INIT", "1 connects pairs when first needed", "0"),
    Variable("TP_SOCKET_IFNAME", "interfaces of TensorPipe (RPC)", "that of the host name"),
    # UCX, libfabric
    Variable("UCX_TLS", "transports of UCX", "all", slow("RDMA is left out", "tcp")),
    Variable("UCX_NET_DEVICES", "devices of UCX, such as mlx5_0:1", "all"),
    Variable("UCX_IB_GID_INDEX", "address entry of a RoCE port, for UCX", "auto"),
    Variable("UCX_LOG_LEVEL", "how much UCX tells", "warn", slow("costs speed", "trace", "debug")),
    Variable("UCX_MEMTYPE_CACHE", "n turns UCX's cache of memory kinds off", "y"),
    Variable(
        "FI_PROVIDER",
        "provider of libfabric: efa, verbs, cxi, tcp",
        "the best that there is",
        slow("TCP in place of RDMA", "tcp", "sockets"),
    ),
    Variable("FI_EFA_USE_DEVICE_RDMA", "RDMA of EFA; needed before libfabric 1.18", "1 on p4d, p5"),
    Variable("FI_EFA_FORK_SAFE", "1 makes EFA safe for forked loader workers", "1 on new kernels"),
    Variable(
        "FI_LOG_LEVEL", "how much libfabric tells", "warn", slow("costs speed", "trace", "debug")
    ),
    Variable("FI_CXI_DEFAULT_CQ_SIZE", "length of Slingshot's completion queue", "1024"),
    Variable("FI_HMEM_CUDA_USE_GDRCOPY", "small copies by gdrcopy", "1"),
    # CUDA
    Variable("CUDA_LAUNCH_BLOCKING", "1 waits for each kernel", "0", slow(SERIAL, "1")),
    Variable(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "hardware queues; 1 orders kernels for tensor parallel on old cards",
        "8",
        slow("communication of fully sharded data parallel cannot overlap", "1"),
    ),
    Variable(
        "CUDA_DEVICE_ORDER", "FASTEST_FIRST or PCI_BUS_ID, as nvidia-smi counts", "FASTEST_FIRST"
    ),
    Variable(
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "any value turns the allocator's cache off",
        "unset",
        slow("each tensor is a cudaMalloc: many times slower", "*"),
    ),
    Variable("PYTORCH_ALLOC_CONF", "settings of the allocator", "unset"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "settings of the allocator, by their older name", "unset"),
    Variable("CUBLAS_WORKSPACE_CONFIG", "workspace of cuBLAS; :4096:8 is deterministic", "by card"),
    Variable("NVIDIA_TF32_OVERRIDE", "0 forbids TF32 everywhere", "unset", slow("no TF32", "0")),
)

PREFIXES = ("TORCH_NCCL_", "TORCH_FR_", "GLOO_", "TORCH_GLOO_", "UCX_", "FI_")
"""Variables that begin so are shown even where the table does not have them."""
