variable "environment" {
  description = "Name of the NIM Rollouts environment. Every resource is tagged nim-rollouts/environment with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", var.environment))
    error_message = "environment must be 1-40 characters of a-z, 0-9 and '-', and not begin or end with '-'."
  }
}

variable "region" {
  description = "AWS region that everything is created in."
  type        = string
  default     = "us-west-2"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be the code of an AWS region, such as us-west-2."
  }
}

variable "cluster_name" {
  description = "Name of the EKS cluster. IAM roles and the network are named after it."
  type        = string
  default     = "nvidia-nim-eks"

  validation {
    # IAM and EventBridge allow 64 characters for a name; the longest suffix used here is "-system-node".
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9_-]{0,49}$", var.cluster_name))
    error_message = "cluster_name must be 1-50 characters of letters, digits, '-' and '_', beginning with a letter or digit."
  }
}

variable "cluster_version" {
  description = "Kubernetes minor version of the EKS cluster, in standard support. The system nodes, and add-ons without a version, go with it."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.(3[3-9]|[4-9][0-9])$", var.cluster_version))
    error_message = "cluster_version must be a minor version from 1.33 on, such as \"1.35\"."
  }
}

variable "admin_principal_arns" {
  description = "IAM users and roles that administer the cluster through an EKS access entry: Airflow's own role must be among them. For an assumed role name the role, not the session."
  type        = list(string)

  validation {
    condition     = length(var.admin_principal_arns) > 0
    error_message = "Name at least one administrator: without one nobody, not even the cluster's creator, could use the cluster."
  }

  validation {
    condition     = alltrue([for arn in var.admin_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(user|role)/.+$", arn))])
    error_message = "Each administrator must be the ARN of an IAM user or role (arn:aws:iam::<account>:role/<name>), not of an STS session."
  }

  validation {
    condition     = length(distinct(var.admin_principal_arns)) == length(var.admin_principal_arns)
    error_message = "admin_principal_arns names one principal twice."
  }
}

variable "availability_zones" {
  description = "Zones to use, two to four, for the whole life of the cluster. Empty: the first zone_count zones of the region that are open without opt-in."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.availability_zones) == 0 || length(distinct(var.availability_zones)) >= 2
    error_message = "EKS wants subnets in at least two different zones."
  }

  validation {
    condition     = length(var.availability_zones) <= 4 && length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "availability_zones must be at most four, each named once."
  }

  validation {
    condition     = alltrue([for zone in var.availability_zones : startswith(zone, var.region)])
    error_message = "availability_zones must be zones of the region."
  }
}

variable "zone_count" {
  description = "How many zones to use where availability_zones is empty, as far as the region has them. More zones find more GPU capacity."
  type        = number
  default     = 3

  validation {
    condition     = var.zone_count >= 2 && var.zone_count <= 4
    error_message = "zone_count must be 2, 3 or 4."
  }
}

variable "vpc_cidr" {
  description = "The VPC's own address block, /16 to /20. Each zone gets a public and a private subnet out of it."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "vpc_cidr must be an IPv4 block between /16 and /20, such as 10.40.0.0/16."
  }
}

variable "secondary_cidr" {
  description = "Second address block of the VPC, /16 to /20 inside 100.64.0.0/10, which every VPC may have: nodes and pods take their addresses here, a subnet a zone, and none from vpc_cidr. null: they live in the private subnets."
  type        = string
  default     = "100.64.0.0/16"

  validation {
    condition = var.secondary_cidr == null || (
      can(cidrnetmask(var.secondary_cidr)) &&
      can(regex("^100\\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\\.[0-9.]+/(1[6-9]|20)$", var.secondary_cidr))
    )
    error_message = "secondary_cidr must be an IPv4 block between /16 and /20 inside 100.64.0.0/10, or null."
  }

  validation {
    condition     = var.secondary_cidr == null || !can(regex("^100\\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\\.", var.vpc_cidr))
    error_message = "With a secondary_cidr, vpc_cidr must lie outside 100.64.0.0/10."
  }
}

variable "nat_gateways" {
  description = "single: one NAT gateway for all zones (cheaper; its zone is a single point of failure). per-zone: one a zone. none: no way out (private endpoints or mirrors are then yours to bring)."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["single", "per-zone", "none"], var.nat_gateways)
    error_message = "nat_gateways must be single, per-zone or none."
  }
}

variable "public_access_cidrs" {
  description = "Blocks that may reach the public endpoint of the cluster's API. Empty: private endpoint only."
  type        = list(string)
  default     = ["0.0.0.0/0"]

  validation {
    condition     = alltrue([for block in var.public_access_cidrs : can(cidrnetmask(block))])
    error_message = "public_access_cidrs must be IPv4 blocks such as 203.0.113.0/24."
  }
}

variable "control_plane_logs" {
  description = "Control plane log types that go to CloudWatch."
  type        = set(string)
  default     = ["api", "audit", "authenticator"]

  validation {
    condition     = length(setsubtract(var.control_plane_logs, ["api", "audit", "authenticator", "controllerManager", "scheduler"])) == 0
    error_message = "control_plane_logs may hold api, audit, authenticator, controllerManager and scheduler."
  }
}

variable "log_retention_days" {
  description = "How long CloudWatch keeps logs, in days."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days must be a period that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}

variable "system_nodes" {
  description = "The managed node group that carries the controllers (CoreDNS, CSI, operators). GPU nodes are not its business. size 0 creates none."
  type = object({
    instance_types = optional(list(string), ["m6i.large"])
    size           = optional(number, 2)
    max_size       = optional(number, 4)
    disk_gb        = optional(number, 50)
  })
  default = {}

  validation {
    condition     = var.system_nodes.size >= 0 && var.system_nodes.max_size >= max(1, var.system_nodes.size)
    error_message = "system_nodes.size must not be negative, max_size not below it."
  }

  validation {
    condition     = length(var.system_nodes.instance_types) > 0 && var.system_nodes.disk_gb >= 20
    error_message = "system_nodes needs at least one instance type, and a disk_gb of 20 or more."
  }
}

variable "addons" {
  description = "EKS add-ons: name -> settings. version null takes EKS's default for the cluster's version, as it is when a plan is made. before_nodes: installed before any node joins."
  type = map(object({
    version              = optional(string)
    configuration_values = optional(string)
    before_nodes         = optional(bool, false)
  }))
  default = {
    vpc-cni                = { before_nodes = true }
    kube-proxy             = { before_nodes = true }
    eks-pod-identity-agent = { before_nodes = true }
    coredns                = {}
    aws-ebs-csi-driver     = {}
    aws-efs-csi-driver     = {}
  }

  validation {
    condition     = alltrue([for addon in var.addons : addon.configuration_values == null || can(jsondecode(addon.configuration_values))])
    error_message = "configuration_values must be a JSON document (use jsonencode)."
  }
}

variable "efs_throughput_mode" {
  description = "Throughput mode of the file system that holds the model caches."
  type        = string
  default     = "elastic"

  validation {
    condition     = contains(["elastic", "bursting"], var.efs_throughput_mode)
    error_message = "efs_throughput_mode must be elastic or bursting."
  }
}

variable "efs_require_tls" {
  description = "A policy on the file system that refuses mounts without TLS."
  type        = bool
  default     = true
}

variable "cloudwatch_observability" {
  description = "The add-on amazon-cloudwatch-observability: metrics and logs of nodes and pods in CloudWatch, which charges for each of them."
  type        = bool
  default     = false
}

variable "karpenter" {
  description = "AWS's side of Karpenter: the controller's role for namespace/service_account, and the queue that tells it of instances about to go. enabled false: GPU nodes are yours to bring. interruption_queue false: no queue, no event rules."
  type = object({
    enabled            = optional(bool, true)
    interruption_queue = optional(bool, true)
    namespace          = optional(string, "kube-system")
    service_account    = optional(string, "karpenter")
  })
  default = {}
}

variable "grafana" {
  description = "A secret in Secrets Manager with a password that AWS makes and terraform never keeps. Raise password_version for a new one."
  type = object({
    enabled          = optional(bool, true)
    password_version = optional(number, 1)
  })
  default = {}

  validation {
    condition     = var.grafana.password_version >= 1 && floor(var.grafana.password_version) == var.grafana.password_version
    error_message = "grafana.password_version must be a whole number from 1 on."
  }
}

variable "tags" {
  description = "Further tags for every resource."
  type        = map(string)
  default     = {}

  validation {
    condition     = !contains(keys(var.tags), "nim-rollouts/environment") && alltrue([for key in keys(var.tags) : !startswith(key, "aws:")])
    error_message = "tags may hold neither nim-rollouts/environment, which is the environment's name, nor keys that begin with aws:."
  }
}
