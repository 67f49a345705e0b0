// A plain consumer of Kafka's Java client, told what to do line by line on stdin, as Producer.java
// is. What the commands mean stands at JavaConsumer in src/kafka/consumer.rs.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public class Consumer {
    private static final Duration POLL = Duration.ofSeconds(1);

    private final String brokers;
    private KafkaConsumer<byte[], byte[]> following;
    private List<String> followed;
    private KafkaConsumer<byte[], byte[]> member;

    private Consumer(String brokers) {
        this.brokers = brokers;
    }

    public static void main(String[] arguments) throws Exception {
        Consumer one = new Consumer(arguments[0]);
        BufferedReader input =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split("\t", -1);
            try {
                String answer = one.run(words[1], Arrays.copyOfRange(words, 2, words.length));
                System.out.println(words[0] + "\tdone\t" + answer);
            } catch (Exception failure) {
                System.out.println(words[0] + "\tfailed\t" + failure);
            }
        }
        System.exit(0);
    }

    private String run(String command, String[] words) {
        switch (command) {
            case "follow": return follow(words);
            case "take": return take(words);
            case "drain": return drain(words);
            case "join": return join(words);
            case "leave": return leave();
            default: throw new IllegalArgumentException(command);
        }
    }

    private String follow(String[] topics) {
        followed = Arrays.asList(topics);
        following = new KafkaConsumer<>(config());
        List<TopicPartition> all = partitions(following, followed);
        following.assign(all);
        following.seekToEnd(all);
        for (TopicPartition one : all) {
            following.position(one);
        }
        return "";
    }

    private String take(String[] words) {
        int wanted = Integer.parseInt(words[0]);
        StringBuilder taken = new StringBuilder();
        int count = 0;
        while (count < wanted) {
            ConsumerRecords<byte[], byte[]> records = following.poll(POLL);
            Instant now = Instant.now();
            long nanos = now.getEpochSecond() * 1_000_000_000L + now.getNano();
            for (ConsumerRecord<byte[], byte[]> record : records) {
                taken.append(followed.indexOf(record.topic())).append(':');
                taken.append(record.partition()).append(':');
                taken.append(record.offset()).append(':').append(nanos).append(' ');
                count++;
            }
        }
        return taken.toString();
    }

    private String drain(String[] words) {
        long wanted = Long.parseLong(words[1]);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(config())) {
            List<TopicPartition> all = partitions(consumer, List.of(words[0]));
            consumer.assign(all);
            long began = System.nanoTime();
            consumer.seekToBeginning(all);
            long count = 0;
            long bytes = 0;
            while (count < wanted) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(POLL)) {
                    count++;
                    bytes += record.value().length;
                }
            }
            return count + " " + bytes + " " + (System.nanoTime() - began);
        }
    }

    private String join(String[] words) {
        Map<String, Object> config = config();
        config.put("group.id", words[0]);
        config.put("group.protocol", words[2]);
        member = new KafkaConsumer<>(config);
        try {
            member.subscribe(List.of(words[1]));
            while (member.assignment().isEmpty()) {
                member.poll(Duration.ofMillis(100));
            }
        } catch (RuntimeException failure) {
            member.close();
            throw failure;
        }
        return "";
    }

    private String leave() {
        member.close();
        return "";
    }

    private Map<String, Object> config() {
        Map<String, Object> config = new HashMap<>();
        config.put("bootstrap.servers", brokers);
        config.put("key.deserializer", ByteArrayDeserializer.class);
        config.put("value.deserializer", ByteArrayDeserializer.class);
        config.put("enable.auto.commit", "false");
        config.put("fetch.min.bytes", "1");
        config.put("isolation.level", "read_committed");
        return config;
    }

    private static List<TopicPartition> partitions(
            KafkaConsumer<byte[], byte[]> consumer, List<String> topics) {
        List<TopicPartition> all = new ArrayList<>();
        for (String topic : topics) {
            for (PartitionInfo partition : consumer.partitionsFor(topic)) {
                all.add(new TopicPartition(topic, partition.partition()));
            }
        }
        return all;
    }
}
