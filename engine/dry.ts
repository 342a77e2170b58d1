/**
 * A GPU that computes nothing and holds nothing: what is asked of it is taken, and what is read back is zero. On it a step shows how much
 * memory it will take, in the time of the host alone.
 */

/** The limits and features of a real one. */
export function dryGpu({ limits }: GPUDevice): GPUDevice {
  const nothing = (): undefined => undefined;
  const buffer = ({ size }: GPUBufferDescriptor): Partial<GPUBuffer> => ({
    size,
    destroy: nothing,
    unmap: nothing,
    mapAsync: async () => undefined,
    getMappedRange: () => new ArrayBuffer(size),
  });
  const pass = {
    setPipeline: nothing,
    setBindGroup: nothing,
    dispatchWorkgroups: nothing,
    end: nothing,
  };
  const encoder = {
    beginComputePass: () => pass,
    copyBufferToBuffer: nothing,
    clearBuffer: nothing,
    finish: () => ({}),
  };
  return {
    limits,
    features: new Set(),
    queue: { writeBuffer: nothing, submit: nothing, onSubmittedWorkDone: async () => undefined },
    lost: new Promise(nothing),
    addEventListener: nothing,
    destroy: nothing,
    createBuffer: buffer,
    createShaderModule: () => ({}),
    createBindGroupLayout: () => ({}),
    createPipelineLayout: () => ({}),
    createComputePipeline: () => ({}),
    createBindGroup: () => ({}),
    createCommandEncoder: () => encoder,
  } as unknown as GPUDevice;
}
