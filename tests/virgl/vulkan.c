/*
 * A Vulkan program that knows what it must see: for the tests of a renderer, in a guest or beside it. What the processor writes to
 * memory that the GPU has mapped, too, goes from there through the GPU's own memory, or through an image, and comes back in other
 * memory of both.
 *
 *   venus-client [ROUNDS]
 *
 * It says `venus-client: ok ...` of each way that left nothing to be desired. Its exit status is 0 only where all did.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vulkan.h>

#define WORDS (1u << 18)
#define BYTES (4ul * WORDS)
#define WIDTH 256u
#define HEIGHT 128u
#define LONG_WAIT 60000000000ull /* ns */

/* A part of the GPU's own memory that the GPU fills by itself. */
#define FILLED_FROM 1000u
#define FILLED_WORDS 5000u
/* A rectangle of the image that is copied from a buffer; the rest is cleared. */
#define COPIED_X 64
#define COPIED_Y 32
#define COPIED_WIDTH 100u
#define COPIED_HEIGHT 50u

struct buffer {
    VkBuffer name;
    VkDeviceMemory memory;
    uint32_t *words; /* NULL where the processor does not see it */
};

static VkPhysicalDevice gpu;
static VkDevice device;
static VkQueue queue;
static VkCommandBuffer commands;
static VkFence fence;

static _Noreturn void fail(const char *what, VkResult result) {
    printf("venus-client: FAILED %s: %d\n", what, result);
    exit(1);
}

static void must(const char *what, VkResult result) {
    if (result != VK_SUCCESS)
        fail(what, result);
}

/* ---- Objects ---- */

static void open_device(void) {
    uint32_t one = 1;
    const float priority = 1;
    const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_1};
    const VkInstanceCreateInfo instance_info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
    /* The first family of each driver that is asked here does everything. */
    const VkDeviceQueueCreateInfo queue_info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
    const VkDeviceCreateInfo device_info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue_info};
    VkInstance instance;
    VkPhysicalDeviceProperties properties;
    must("an instance", vkCreateInstance(&instance_info, NULL, &instance));
    VkResult found = vkEnumeratePhysicalDevices(instance, &one, &gpu);
    if (one != 1 || (found != VK_SUCCESS && found != VK_INCOMPLETE))
        fail("a GPU", found);
    vkGetPhysicalDeviceProperties(gpu, &properties);
    printf("venus-client: device %s\n", properties.deviceName);
    must("a device", vkCreateDevice(gpu, &device_info, NULL, &device));
    vkGetDeviceQueue(device, 0, 0, &queue);
}

static void make_commands(void) {
    const VkCommandPoolCreateInfo pool_info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                               .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT};
    const VkFenceCreateInfo fence_info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkCommandPool pool;
    must("a pool", vkCreateCommandPool(device, &pool_info, NULL, &pool));
    const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = pool, .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY, .commandBufferCount = 1};
    must("a command buffer", vkAllocateCommandBuffers(device, &info, &commands));
    must("a fence", vkCreateFence(device, &fence_info, NULL, &fence));
}

/* Memory of one of these kinds that has all these properties. */
static VkDeviceMemory allocate(VkMemoryRequirements needs, VkMemoryPropertyFlags wanted) {
    VkPhysicalDeviceMemoryProperties properties;
    VkDeviceMemory memory;
    vkGetPhysicalDeviceMemoryProperties(gpu, &properties);
    for (uint32_t type = 0; type < properties.memoryTypeCount; type++) {
        if (!(needs.memoryTypeBits >> type & 1) || (properties.memoryTypes[type].propertyFlags & wanted) != wanted)
            continue;
        const VkMemoryAllocateInfo info = {
            .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size, .memoryTypeIndex = type};
        must("memory", vkAllocateMemory(device, &info, NULL, &memory));
        return memory;
    }
    fail("a kind of memory", wanted);
}

static struct buffer make_buffer(bool seen) {
    const VkMemoryPropertyFlags both = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = BYTES,
                                     .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    struct buffer buffer = {0};
    VkMemoryRequirements needs;
    must("a buffer", vkCreateBuffer(device, &info, NULL, &buffer.name));
    vkGetBufferMemoryRequirements(device, buffer.name, &needs);
    buffer.memory = allocate(needs, seen ? both : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    must("memory for a buffer", vkBindBufferMemory(device, buffer.name, buffer.memory, 0));
    if (seen)
        must("a mapping", vkMapMemory(device, buffer.memory, 0, BYTES, 0, (void **)&buffer.words));
    return buffer;
}

static void drop_buffer(struct buffer buffer) {
    vkDestroyBuffer(device, buffer.name, NULL);
    vkFreeMemory(device, buffer.memory, NULL);
}

/* ---- Commands ---- */

static void begin(void) {
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    must("beginning", vkBeginCommandBuffer(commands, &info));
}

/* Everything before is done and seen by everything after. */
static void barrier(void) {
    const VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                                 .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT;
    vkCmdPipelineBarrier(commands, stages, stages, 0, 1, &all, 0, NULL, 0, NULL);
}

static void run(void) {
    const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    barrier();
    must("ending", vkEndCommandBuffer(commands));
    must("a submission", vkQueueSubmit(queue, 1, &info, fence));
    must("a fence", vkWaitForFences(device, 1, &fence, VK_TRUE, LONG_WAIT));
    must("a fence", vkResetFences(device, 1, &fence));
}

static uint32_t mixed(uint32_t at, uint32_t round) { return (at * 0x9e3779b1u ^ round) * 0x2c1b3c6du; }

static void judge(const char *way, uint32_t round, uint32_t wrong) {
    printf("venus-client: %s %s round=%u wrong=%u\n", wrong ? "WRONG" : "ok", way, round, wrong);
    if (wrong)
        exit(1);
}

/* From memory of both through the GPU's own, a part of which the GPU fills, into other memory of both. */
static void copy_buffers(uint32_t round) {
    struct buffer from = make_buffer(true), own = make_buffer(false), to = make_buffer(true);
    const VkBufferCopy all = {.size = BYTES};
    uint32_t wrong = 0;
    for (uint32_t at = 0; at < WORDS; at++)
        from.words[at] = mixed(at, round);
    begin();
    barrier();
    vkCmdCopyBuffer(commands, from.name, own.name, 1, &all);
    barrier();
    vkCmdFillBuffer(commands, own.name, 4 * FILLED_FROM, 4 * FILLED_WORDS, round);
    barrier();
    vkCmdCopyBuffer(commands, own.name, to.name, 1, &all);
    run();
    for (uint32_t at = 0; at < WORDS; at++)
        wrong += to.words[at] != (at - FILLED_FROM < FILLED_WORDS ? round : mixed(at, round));
    judge("buffers", round, wrong);
    drop_buffer(from), drop_buffer(own), drop_buffer(to);
}

static void change_layout(VkImage image, VkImageLayout from, VkImageLayout to) {
    const VkImageMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                                      .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT,
                                      .oldLayout = from, .newLayout = to, .srcQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED,
                                      .dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED, .image = image,
                                      .subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}};
    const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    vkCmdPipelineBarrier(commands, stages, stages, 0, 0, NULL, 0, NULL, 1, &all);
}

static VkImage make_image(VkDeviceMemory *memory) {
    const VkImageCreateInfo info = {.sType = VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO, .imageType = VK_IMAGE_TYPE_2D,
                                    .format = VK_FORMAT_R8G8B8A8_UNORM, .extent = {WIDTH, HEIGHT, 1}, .mipLevels = 1,
                                    .arrayLayers = 1, .samples = VK_SAMPLE_COUNT_1_BIT, .tiling = VK_IMAGE_TILING_OPTIMAL,
                                    .usage = VK_IMAGE_USAGE_TRANSFER_SRC_BIT | VK_IMAGE_USAGE_TRANSFER_DST_BIT};
    VkImage image;
    VkMemoryRequirements needs;
    must("an image", vkCreateImage(device, &info, NULL, &image));
    vkGetImageMemoryRequirements(device, image, &needs);
    *memory = allocate(needs, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    must("memory for an image", vkBindImageMemory(device, image, *memory, 0));
    return image;
}

/* An image that is cleared, and gets a rectangle from memory of both; all of it comes back in other memory of both. */
static void copy_image(uint32_t round) {
    const VkImageSubresourceRange range = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
    const VkImageSubresourceLayers layers = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1};
    const VkBufferImageCopy part = {.imageSubresource = layers, .imageOffset = {COPIED_X, COPIED_Y, 0},
                                    .imageExtent = {COPIED_WIDTH, COPIED_HEIGHT, 1}};
    const VkBufferImageCopy all = {.imageSubresource = layers, .imageExtent = {WIDTH, HEIGHT, 1}};
    const VkClearColorValue colour = {.float32 = {1, 0, 1, 0}}; /* as a word: 0x00ff00ff */
    struct buffer from = make_buffer(true), to = make_buffer(true);
    VkDeviceMemory memory;
    VkImage image = make_image(&memory);
    uint32_t wrong = 0;
    for (uint32_t at = 0; at < COPIED_WIDTH * COPIED_HEIGHT; at++)
        from.words[at] = mixed(at, round);
    begin();
    change_layout(image, VK_IMAGE_LAYOUT_UNDEFINED, VK_IMAGE_LAYOUT_GENERAL);
    vkCmdClearColorImage(commands, image, VK_IMAGE_LAYOUT_GENERAL, &colour, 1, &range);
    barrier();
    vkCmdCopyBufferToImage(commands, from.name, image, VK_IMAGE_LAYOUT_GENERAL, 1, &part);
    barrier();
    vkCmdCopyImageToBuffer(commands, image, VK_IMAGE_LAYOUT_GENERAL, to.name, 1, &all);
    run();
    for (uint32_t at = 0; at < WIDTH * HEIGHT; at++) {
        uint32_t x = at % WIDTH - COPIED_X, y = at / WIDTH - COPIED_Y;
        bool copied = x < COPIED_WIDTH && y < COPIED_HEIGHT;
        wrong += to.words[at] != (copied ? mixed(y * COPIED_WIDTH + x, round) : 0x00ff00ffu);
    }
    judge("image", round, wrong);
    vkDestroyImage(device, image, NULL);
    vkFreeMemory(device, memory, NULL);
    drop_buffer(from), drop_buffer(to);
}

int main(int count, char **arguments) {
    uint32_t rounds = count == 2 ? strtoul(arguments[1], NULL, 10) : 3;
    setvbuf(stdout, NULL, _IOLBF, 0);
    open_device();
    make_commands();
    for (uint32_t round = 1; round <= rounds; round++) {
        copy_buffers(round);
        copy_image(round);
    }
    must("the end", vkDeviceWaitIdle(device));
    puts("venus-client: ok all");
    return 0;
}
