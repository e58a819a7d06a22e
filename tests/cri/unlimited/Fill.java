// Fills a map with the MiB that the argument says, in blocks of 64 KiB. For each one that it keeps
// it makes three that are garbage at once. Prints the sum of all that is in the map.
import java.util.HashMap;

class Fill {
    static final int WORDS = 8192;
    static final int BLOCKS_A_MIB = 16;

    public static void main(String[] arguments) {
        int mib = Integer.parseInt(arguments[0]);
        var blocks = new HashMap<Integer, long[]>();
        for (int n = 0; n < mib * BLOCKS_A_MIB; n++) {
            for (int times = 0; times < 4; times++) {
                blocks.put(n, block(n));
            }
        }
        long sum = 0;
        for (long[] block : blocks.values()) {
            for (long word : block) {
                sum += word;
            }
        }
        System.out.println(blocks.size() + " blocks, sum " + sum);
    }

    static long[] block(int n) {
        long[] block = new long[WORDS];
        java.util.Arrays.fill(block, n);
        return block;
    }
}
