"""The environment variables of NCCL.

Names are those in the strings of libnccl 2.30; meanings and defaults are those of NVIDIA's guide
(docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html).
"""

from deepseek.doctor.variables import Variable, removed, renamed, slow

TUNED = "NCCL chooses by size and topology; a fixed choice is slower for other sizes"
VARIABLES = (
    # which network
    Variable(
        "NCCL_SOCKET_IFNAME", "prefixes of the interfaces for TCP and bootstrap", "ib*, others"
    ),
    Variable("NCCL_SOCKET_FAMILY", "IPv4 (AF_INET) or IPv6 (AF_INET6) only", "either"),
    Variable(
        "NCCL_SOCKET_NTHREADS", "helper threads per TCP connection, 1 to 16", "1, more on clouds"
    ),
    Variable("NCCL_NSOCKS_PERTHREAD", "sockets per helper thread", "1, more on clouds"),
    Variable("NCCL_SOCKET_RETRY_CNT", "attempts to connect", "34"),
    Variable("NCCL_SOCKET_RETRY_SLEEP_MSEC", "pause between attempts, ms", "100"),
    Variable("NCCL_OOB_NET_ENABLE", "bootstrap over the network plug-in", "0"),
    Variable("NCCL_OOB_NET_IFNAME", "interfaces for the bootstrap over the plug-in", "all"),
    Variable("NCCL_COMM_ID", "address of the bootstrap, host:port", "set by torch"),
    Variable(
        "NCCL_NET",
        "network to use: IB, Socket or the name of a plug-in",
        "the best that there is",
        slow("TCP in place of RDMA", "socket"),
    ),
    Variable(
        "NCCL_NET_PLUGIN",
        "network plug-in to load",
        "libnccl-net.so where there is one",
        slow("the plug-in of the cloud (EFA, gIB) is turned off", "none"),
    ),
    Variable("NCCL_TUNER_PLUGIN", "plug-in that chooses algorithms", "that of the net plug-in"),
    Variable("NCCL_PROFILER_PLUGIN", "plug-in that records what NCCL does", "none"),
    Variable("NCCL_CROSS_NIC", "whether rings may change the network card: 0, 1, 2 = auto", "2"),
    Variable(
        "NCCL_NETDEVS_POLICY", "how many network cards each GPU uses: AUTO, ALL, MAX:n", "AUTO"
    ),
    # InfiniBand and RoCE
    Variable("NCCL_IB_DISABLE", "1 turns InfiniBand and RoCE off, TCP is used", "0"),
    Variable("NCCL_IB_HCA", "which RDMA devices, such as mlx5_0,mlx5_1 or ^mlx5_2", "all"),
    Variable(
        "NCCL_IB_TIMEOUT",
        "time-out of a packet, 4.096 us x 2^n",
        "20",
        slow("gives up within 0.3 s: a busy network ends the run", *map(str, range(1, 17))),
    ),
    Variable(
        "NCCL_IB_RETRY_CNT",
        "how often a packet is sent again, 1 to 7",
        "7",
        slow("gives up early: a busy network ends the run", *"0123"),
    ),
    Variable("NCCL_IB_GID_INDEX", "address entry of a RoCE port; 3 is often RoCE v2", "chosen"),
    Variable("NCCL_IB_ROCE_VERSION_NUM", "version of RoCE", "2"),
    Variable("NCCL_IB_ADDR_FAMILY", "address family of RoCE", "AF_INET"),
    Variable("NCCL_IB_ADDR_RANGE", "range of RoCE addresses to take", "::/0"),
    Variable("NCCL_IB_SL", "service level of InfiniBand", "0"),
    Variable("NCCL_IB_TC", "traffic class; RoCE switches sort lossless traffic by it", "0"),
    Variable("NCCL_IB_FIFO_TC", "traffic class of control messages", "NCCL_IB_TC"),
    Variable("NCCL_IB_QPS_PER_CONNECTION", "queue pairs per connection, for hashed paths", "1"),
    Variable("NCCL_IB_SPLIT_DATA_ON_QPS", "1 spreads each message over the queue pairs", "0"),
    Variable("NCCL_IB_PCI_RELAXED_ORDERING", "relaxed ordering: 0, 1, 2 = auto", "2"),
    Variable("NCCL_IB_ADAPTIVE_ROUTING", "adaptive routing", "1 on InfiniBand"),
    Variable("NCCL_IB_MERGE_NICS", "both ports of a card as one", "1"),
    Variable("NCCL_IB_PKEY", "partition key", "0"),
    Variable("NCCL_IB_ECE_ENABLE", "enhanced connection establishment", "1"),
    Variable(
        "NCCL_NET_GDR_LEVEL",
        "how far a network card may be from its GPU for GPUDirect RDMA",
        "by topology",
        slow("GPUDirect RDMA is off: all traffic passes host memory", "loc", "0"),
    ),
    Variable("NCCL_NET_GDR_READ", "GPUDirect RDMA for sending too", "1 with NVLink"),
    Variable("NCCL_NET_SHARED_BUFFERS", "network buffers shared by connections", "1"),
    Variable("NCCL_NET_SHARED_COMMS", "network connections shared by channels", "1"),
    Variable(
        "NCCL_DMABUF_ENABLE",
        "GPUDirect RDMA without nvidia-peermem",
        "1",
        slow("GPUDirect RDMA needs nvidia-peermem then", "0"),
    ),
    # inside a machine
    Variable(
        "NCCL_P2P_DISABLE",
        "1 forbids that GPUs access each other",
        "0",
        slow("NVLink and PCIe copies between GPUs are off: several times slower", "1"),
        "unset NCCL_P2P_DISABLE; if it hung without, turn off IOMMU and ACS instead",
    ),
    Variable(
        "NCCL_P2P_LEVEL",
        "how far apart GPUs may be to access each other: LOC, NVL, PIX, PXB, PHB, SYS",
        "by topology",
        slow("GPUs do not access each other at all", "loc", "0"),
    ),
    Variable("NCCL_P2P_DIRECT_DISABLE", "1 forbids direct access within a process", "0"),
    Variable(
        "NCCL_P2P_NET_CHUNKSIZE", "chunk of send and receive over the network, bytes", "131072"
    ),
    Variable(
        "NCCL_SHM_DISABLE",
        "1 forbids shared memory between processes",
        "0",
        slow("GPUs without peer access talk over the network card", "1"),
        "unset NCCL_SHM_DISABLE, and give the container a larger /dev/shm",
    ),
    Variable(
        "NCCL_NVLS_ENABLE",
        "reduction inside NVSwitch (H100 and newer)",
        "2 (auto)",
        slow("reductions inside NVSwitch are off", "0"),
    ),
    Variable("NCCL_MNNVL_ENABLE", "NVLink between machines (NVL72)", "2 (auto)"),
    Variable("NCCL_CUMEM_ENABLE", "buffers by the cuMem calls", "by version"),
    Variable("NCCL_CUMEM_HOST_ENABLE", "host buffers by the cuMem calls", "by version"),
    Variable("NCCL_NVB_DISABLE", "1 forbids routes over a third GPU", "0"),
    Variable("NCCL_PXN_DISABLE", "1 forbids the network card of another GPU", "0"),
    Variable("NCCL_P2P_PXN_LEVEL", "send and receive by another GPU's card: 0, 1, 2", "2"),
    Variable(
        "NCCL_IGNORE_CPU_AFFINITY", "1: NCCL chooses its cores itself, whatever was given", "0"
    ),
    Variable(
        "NCCL_TOPO_FILE", "XML file with the topology, for virtual machines", "read from /sys"
    ),
    Variable("NCCL_TOPO_DUMP_FILE", "file to write the topology found to", "none"),
    Variable("NCCL_GRAPH_FILE", "file with rings and trees", "computed", slow(TUNED, "*")),
    Variable("NCCL_HOSTID", "what tells machines apart", "host name and boot id"),
    # how
    Variable("NCCL_ALGO", "algorithms allowed: Ring, Tree, NVLS, CollNet", "all", slow(TUNED, "*")),
    Variable(
        "NCCL_PROTO",
        "protocols allowed: LL, LL128, Simple",
        "those the hardware can",
        (
            *slow("LL is for small messages: at most half the bandwidth", "ll"),
            *slow(TUNED, "*"),
        ),
    ),
    Variable("NCCL_BUFFSIZE", "buffer per connection, bytes", "4194304"),
    Variable("NCCL_NTHREADS", "threads per block", "512 or 640"),
    Variable("NCCL_MIN_NCHANNELS", "least channels; each takes an SM", "by topology"),
    Variable(
        "NCCL_MAX_NCHANNELS",
        "most channels; each takes an SM",
        "by topology",
        slow("too few channels to fill a fast link", "1", "2"),
    ),
    Variable("NCCL_MIN_CTAS", "least blocks of a kernel", "by topology"),
    Variable("NCCL_MAX_CTAS", "most blocks of a kernel", "by topology"),
    Variable("NCCL_CTA_POLICY", "0 fast, 1 few SMs, 2 no SMs where possible", "0"),
    Variable("NCCL_NCHANNELS_PER_NET_PEER", "channels per peer over the network", "by topology"),
    Variable("NCCL_COLLNET_ENABLE", "reduction inside the switches (SHARP)", "0"),
    Variable("NCCL_COLLNET_NODE_THRESHOLD", "machines from which on SHARP is used", "2"),
    Variable("NCCL_LAUNCH_MODE", "PARALLEL or GROUP launch", "PARALLEL"),
    Variable(
        "NCCL_RUNTIME_CONNECT", "connections made when first needed", "1", slow("slow start", "0")
    ),
    Variable("NCCL_GRAPH_REGISTER", "buffers of CUDA graphs are registered", "1"),
    Variable("NCCL_LOCAL_REGISTER", "buffers that the user registers", "1"),
    Variable("NCCL_GRAPH_MIXING_SUPPORT", "collectives inside and outside of graphs", "1"),
    Variable("NCCL_SET_STACK_SIZE", "1 sets the stack of kernels", "0"),
    Variable("NCCL_CHECK_POINTERS", "1 checks the buffers", "0", slow("costs time", "1")),
    Variable(
        "NCCL_COMM_BLOCKING",
        "1: calls wait, 0: they do not",
        "as torch sets it",
        slow("contradicts what torch sets", "0", "1"),
    ),
    Variable("NCCL_CONF_FILE", "file with further settings", "/etc/nccl.conf"),
    Variable("NCCL_RAS_ENABLE", "service that answers ncclras", "1"),
    Variable("NCCL_RAS_ADDR", "address of that service", "localhost:28028"),
    # what it tells
    Variable(
        "NCCL_DEBUG",
        "how much NCCL tells: VERSION, WARN, INFO, TRACE",
        "nothing",
        (
            *slow("TRACE writes for each call: slow, and gigabytes of log", "trace"),
            *slow("not a level that NCCL knows: ignored", "debug", "error", "warning", "1", "true"),
        ),
        "NCCL_DEBUG=WARN for daily use, INFO to look for a fault",
    ),
    Variable(
        "NCCL_DEBUG_SUBSYS",
        "what INFO is about: INIT, NET, GRAPH, COLL, ENV, ...",
        "INIT,BOOTSTRAP,ENV",
        slow("writes for each call", "all", "coll"),
    ),
    Variable("NCCL_DEBUG_FILE", "file for that, %h host, %p process", "standard output"),
    # of the past
    renamed("NCCL_BLOCKING_WAIT", "TORCH_NCCL_BLOCKING_WAIT"),
    renamed("NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    renamed("NCCL_DESYNC_DEBUG", "TORCH_NCCL_DESYNC_DEBUG"),
    renamed("NCCL_IB_GDR_LEVEL", "NCCL_NET_GDR_LEVEL"),
    renamed("NCCL_IB_CUDA_SUPPORT", "NCCL_NET_GDR_LEVEL"),
    renamed("NCCL_MIN_NRINGS", "NCCL_MIN_NCHANNELS"),
    renamed("NCCL_MAX_NRINGS", "NCCL_MAX_NCHANNELS"),
    removed("NCCL_TREE_THRESHOLD", "size up to which trees are used"),
    removed("NCCL_LL_THRESHOLD", "size up to which LL is used"),
    removed("NCCL_SINGLE_RING_THRESHOLD", "size up to which one ring is used"),
    removed("NCCL_CHECKS_DISABLE", "1 leaves checks of arguments out"),
    removed("NCCL_RINGS", "rings written by hand"),
)
"""Those worth explaining; NCCL has some two hundred more, for its own developers."""

INTERNAL_PREFIXES = (
    "NCCL_GDRCOPY_",
    "NCCL_GIN_",
    "NCCL_IB_",
    "NCCL_LL",
    "NCCL_MNNVL_",
    "NCCL_NET_",
    "NCCL_NVLS_",
    "NCCL_P2P_",
    "NCCL_PROXY_",
    "NCCL_RAS_",
    "NCCL_RMA_",
    "NCCL_SYM_",
    "NCCL_WIN_",
    "NCCL_WORK_",
    "NCCL_SOCKET_",
    "NCCL_DEBUG_",
)
"""What names of NCCL's further variables begin with: a stranger of these is not called misspelt."""
